"""A disk without room: for the port file, for what the server says, for the cache of a bucket."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import AsyncClient, Client
from serving.copying import copy_version
from serving.repository import Repository
from serving.storage import open_repository
from serving.whole_file import names_disk
from tests.commands import run_python
from tests.conftest import ROOT, running_server
from tests.object_store import BUCKET, ObjectStore, running_store
from tests.photos import jpeg
from tests.serving.held_model import until
from tests.small_disk import small_disk
from tests.tiny import build_version

FULL = Path("/dev/full")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2**20) as folder:
        yield folder


def fill(disk: Path) -> Path:
    """Whatever room is left is taken, until the file is deleted."""
    stone = disk / "stone"
    with pytest.raises(OSError, match="No space left"), stone.open("wb", buffering=0) as file:
        while True:
            assert file.write(bytes(4096))
    return stone


def serve_in_vain(models: Path | str, *flags: str, stdout: object = subprocess.PIPE) -> str:
    """The one line that `serve` says as it ends with status 2."""
    command = ("-m", "serving.serve", "--models", models, "--port", "0", "--device", "cpu", *flags)
    done = run_python(*command, stdout=stdout)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_no_room_for_the_port_file(models: Path, disk: Path) -> None:
    fill(disk)
    line = serve_in_vain(models, "--port-file", str(disk / "port"))
    assert "the port file can't be written" in line and "No space left" in line


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_no_room_for_the_start_line(models: Path) -> None:
    with FULL.open("w") as full:
        line = serve_in_vain(models, stdout=full)
    assert "No space left" in line


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", [("serve", "--check"), ("models", "list")])
@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_no_room_for_what_is_printed(
    models: Path, command: tuple[str, str], unbuffered: list[str]
) -> None:
    module, what = command
    arguments = [*unbuffered, "-m", f"serving.{module}", what, "--models", models]
    with FULL.open("w") as full:
        done = run_python(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("error: stdout takes no more (No space left on device)")


@pytest.mark.parametrize("command", [("serve", "--check"), ("models", "list")])
def test_a_stdout_that_is_closed_is_no_failure(models: Path, command: tuple[str, str]) -> None:
    module, what = command
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", f"serving.{module}", what]
    subprocess.run([*closed, "--models", models], cwd=ROOT, check=True)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_logs_that_find_no_room_are_lost_and_calls_answered(models: Path, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [*(sys.executable, "-m", "serving.serve", "--models", str(models), "--port", "0")]
    command += ["--port-file", str(port_file), "--device", "cpu", "--access-log", "on"]
    with FULL.open("w") as full:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=full)
    try:
        asyncio.run(until(port_file.exists))
        with Client(f"127.0.0.1:{port_file.read_text().strip()}") as client:
            for seed in range(20):
                assert client.classify([jpeg(seed=seed)], model="pets").version == 1
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_no_room_for_a_copied_version(models: Path, disk: Path) -> None:
    """Writing to an open file fails without a name: which disk is full is said all the same."""
    fill(disk)
    (disk / "m").mkdir()
    command = ("-m", "serving.models", "copy", "pets/1", "--to", disk / "m", "--models", models)
    done = run_python(*command)
    assert done.returncode == 1
    assert done.stderr == f"error: [Errno 28] No space left on device: '{disk}/m/pets'\n"
    assert not [*(disk / "m").iterdir()]


def test_a_disk_that_fails_is_named() -> None:
    """Reading what no process has at address 0 fails as a broken disk does."""
    with (
        pytest.raises(OSError, match=r"Errno 5.*'/mnt/photos'"),
        names_disk(Path("/mnt/photos")),
        Path("/proc/self/mem").open("rb", buffering=0) as broken,
    ):
        broken.read(1)


# --- the cache of a bucket


@pytest.fixture
def store(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A bucket whose copies would lie on the small disk."""
    (tmp_path / "store").mkdir()
    with running_store(tmp_path / "store") as running:
        running.put_into(monkeypatch)
        monkeypatch.setenv("PAWPRINT_CACHE", str(disk / "cache"))
        yield running


async def test_no_room_in_the_cache_of_a_bucket(
    store: ObjectStore, models: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start: an error that says where. Later: the old version stays until there is room."""
    location = f"s3://{BUCKET}/full"
    remote = open_repository(location)
    copy_version(Repository(models), "pets", 1, remote)
    stone = fill(disk)
    line = await asyncio.to_thread(serve_in_vain, location)
    assert f"the cache {disk / 'cache'}" in line and "No space left" in line
    stone.unlink()
    async with (
        running_server(location, control="none") as running,
        AsyncClient(running.address) as client,
    ):

        async def answering() -> int:
            return (await client.classify([jpeg()], model="pets")).version

        assert await answering() == 1
        build_version(models, "pets", seed=1)
        copy_version(Repository(models), "pets", 2, remote)
        stone = fill(disk)
        for _ in range(3):
            await running.server.control.rescan()
            assert await answering() == 1
        said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(said) == 1 and "No space left" in said[0] and "PAWPRINT_CACHE" in said[0]
        stone.unlink()
        await running.server.control.rescan()
        assert await answering() == 2


def test_what_can_not_be_removed_from_the_cache_is_in_nobodys_way(
    store: ObjectStore, models: Path, disk: Path
) -> None:
    location = f"s3://{BUCKET}/read-only"
    copy_version(Repository(models), "pets", 1, open_repository(location))
    Path(disk / "cache" / "sha256").mkdir(parents=True)
    old = disk / "cache" / "sha256" / "old"
    old.write_bytes(b"old")
    os.utime(old, (0, 0))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = run_python("-m", "serving.models", "list", "--models", location)
    assert (done.returncode, done.stderr) == (0, "") and "pets" in done.stdout
    assert old.exists()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    open_repository(location)
    assert not old.exists()
