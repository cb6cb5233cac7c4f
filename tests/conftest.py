"""A repository with a tiny version, and real servers on loopback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving.server import Server
from serving.settings import ServerSettings
from tests.tiny import build_version

if "PYTEST_XDIST_WORKER" in os.environ:  # torch is not loaded yet
    # The processes share the cores; threads that wait for each other's would only hold them up.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

ROOT = Path(__file__).resolve().parents[1]
READY_WITHIN_S = 120.0
# They take longest, and begin first: else one process would still be at them when others are done.
LONGEST = (
    *("test_train_command", "test_tune", "test_distributed", "test_checkpoint", "test_workers"),
    *("test_storage", "test_analyze", "test_quantize"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: tests wait, too."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def shared_data() -> Path:
    """Real photos and weights beside the checkout, or at PAWPRINT_SHARED; skips where absent."""
    folder = Path(os.environ.get("PAWPRINT_SHARED", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set PAWPRINT_SHARED")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository that holds pets/1."""
    root = tmp_path / "models"
    build_version(root, "pets", size=32)
    return root


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server in this process, on the test's own event loop."""

    address: str
    server: Server


@asynccontextmanager
async def running_server(models: Path, **settings: object) -> AsyncIterator[Running]:
    """On one core, with batches of 16, unless the settings say other: so that a test can hold the
    one batch that runs, and know what gathers behind it."""
    given = {"cores": 1, "max_batch": 16, **settings}
    server = Server(ServerSettings(models=models, port=0, device="cpu", **given))
    try:
        port = await server.open()
        await server.load()
        yield Running(address=f"127.0.0.1:{port}", server=server)
    finally:
        await server.close()


@pytest.fixture
async def running(models: Path) -> AsyncIterator[Running]:
    async with running_server(models) as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """The command `serve` in a process of its own."""

    address: str
    process: subprocess.Popen[str]
    log: Path  # its stderr

    def stop(self, number: int = signal.SIGTERM, within_s: float = 30.0) -> tuple[int, str, str]:
        """Signal it and wait; returns its status, stdout and stderr."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=within_s)
        return self.process.returncode, out, self.log.read_text()


def start_server(
    models: Path,
    folder: Path,
    *flags: str,
    python: Path | str = sys.executable,
    program: Sequence[str] = ("-m", "serving.serve"),
) -> ServerProcess:
    """Start `serve` on a free port and wait until it is ready; `folder` takes its port file and
    its log."""
    port_file = folder / f"port-{time.monotonic_ns()}"
    log = port_file.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                *(str(python), *program, "--models", str(models)),
                *("--port", "0", "--port-file", str(port_file), "--device", "cpu", *flags),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    deadline = time.monotonic() + READY_WITHIN_S
    while not port_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            out, _ = process.communicate()
            said = f"{out}{log.read_text()}"
            raise AssertionError(f"serve did not start ({process.returncode}):\n{said}")
        time.sleep(0.02)
    address = f"127.0.0.1:{port_file.read_text().strip()}"
    return ServerProcess(address=address, process=process, log=log)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`serve` with pets/1, for all tests of a file."""
    folder = tmp_path_factory.mktemp("server")
    build_version(folder / "models", "pets")
    process = start_server(folder / "models", folder)
    yield process
    process.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """start_server(models, *flags, ...); what still runs at the end is killed."""
    started: list[ServerProcess] = []

    def begin(models: Path, *flags: str, **how: Any) -> ServerProcess:
        started.append(start_server(models, tmp_path, *flags, **how))
        return started[-1]

    yield begin
    for server in started:
        with server.process as process:  # closes its pipe, which its children may hold for ever
            process.kill()
