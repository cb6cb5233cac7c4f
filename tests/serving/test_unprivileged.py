"""A server that may write nothing anywhere and is nobody."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client
from tests.conftest import ROOT
from tests.photos import jpeg
from tests.tiny import build_version

NOBODY = 65534
# In a mount namespace of its own: every mount below / becomes read-only, then root is given up.
JAIL = """
set -e
mount --make-rprivate /
awk '{print $2}' /proc/mounts | sort -u | while read -r place; do
  mount -o remount,bind,ro "$place" 2>/dev/null || true
done
for place in / /tmp; do
  ! touch "$place/written-by-the-test" 2>/dev/null || { echo "$place is writable"; exit 3; }
done
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all "$@"
"""


@pytest.fixture
def open_models() -> Iterator[Path]:
    """A repository that anyone may read."""
    folder = Path(tempfile.mkdtemp(prefix="pawprint-open-"))
    folder.chmod(0o755)
    build_version(folder / "models", "pets")
    yield folder / "models"
    shutil.rmtree(folder)


def test_it_serves_as_nobody_on_a_read_only_file_system(open_models: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("needs root, unshare and setpriv, to give privileges up")
    probe = subprocess.run(
        ["unshare", "--mount", "sh", "-c", JAIL, "sh", sys.executable, "-c", "import grpc"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    if probe.returncode:
        pytest.skip(f"no read-only namespace can be made here: {probe.stderr or probe.stdout}")
    server = subprocess.Popen(
        [
            *("unshare", "--mount", "sh", "-c", JAIL, "sh"),
            *(sys.executable, "-m", "serving.serve", "--models", str(open_models)),
            *("--port", "0", "--device", "cpu"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("serving on "), server.communicate(timeout=10)
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert (
            f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
            and "CapEff:\t0000000000000000" in status
        )
        with Client(line.split()[2].rstrip(":")) as client:
            assert client.classify([jpeg()], model="pets").results[0].label.name in ("cat", "dog")
        server.terminate()
        out, err = server.communicate(timeout=30)
        assert server.returncode == 0 and "Traceback" not in err, err
    finally:
        server.kill()
        server.communicate()
