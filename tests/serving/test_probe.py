"""The health probe of the containers, against a real server."""

import asyncio
import subprocess
from typing import Any

import pytest

from serving.access import TRY_TLS
from serving.probe import _here, serving_status
from serving.server import SERVICE, Server
from serving.settings import ServerSettings
from tests.commands import run_python
from tests.conftest import Running


async def test_a_server_is_healthy_only_once_it_is_loaded(models) -> None:
    server = Server(ServerSettings(models=models, port=0, device="cpu"))
    address = f"127.0.0.1:{await server.open()}"
    assert await asyncio.to_thread(serving_status, address, "", 5.0) == "NOT_SERVING"
    await server.load()
    for service in ("", SERVICE):
        assert await asyncio.to_thread(serving_status, address, service, 5.0) == "SERVING"
    assert await asyncio.to_thread(serving_status, address, "no.Such", 5.0) == "NOT_FOUND"
    await server.close()
    assert await asyncio.to_thread(serving_status, address, "", 0.3) in (
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
    )


@pytest.mark.parametrize(
    "flags, status, said",
    [
        (["--timeout", "0.2", "--address", "127.0.0.1:1"], 1, "error: 127.0.0.1:1 is "),
        (["--timeout", "0.2", "--address", "127.0.0.1:1", "--tls"], 1, "error: 127.0.0.1:1 is "),
        (["--timeout", "0"], 2, "error: --timeout must be more than 0 seconds"),
        (["--timeout", "inf"], 2, "error: --timeout must be more than 0 seconds and finite"),
        (["--nonsense"], 2, "error: unrecognized arguments: --nonsense"),
    ],
)
def test_its_status_says_what_is_wrong(flags: list[str], status: int, said: str) -> None:
    done = probe(*flags)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"; {TRY_TLS}\n") == (status == 1 and "--tls" not in flags)


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("", "127.0.0.1:7"),
        ("0.0.0.0", "127.0.0.1:7"),
        ("::", "[::1]:7"),
        ("10.1.2.3", "10.1.2.3:7"),
    ],
)
def test_it_asks_where_the_server_listens(host: str, asked: str) -> None:
    assert _here({"PAWPRINT_SERVE_HOST": host, "PAWPRINT_SERVE_PORT": "7"}) == asked


async def test_the_command_says_serving(running: Running) -> None:
    done = await asyncio.to_thread(probe, "--address", running.address)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    with open("/dev/full", "w") as full:
        done = await asyncio.to_thread(probe, "--address", running.address, stdout=full)
    assert done.stderr == "error: stdout takes no more (No space left on device)\n"


def probe(*flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "serving.probe", *flags, **options)
