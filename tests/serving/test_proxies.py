"""Proxies of the environment: which servers are reached past them, and what is said of the rest."""

import asyncio
import os
import select
import socket
from pathlib import Path

import grpc
import pytest

from serving.access import channel_opener
from serving.client import AsyncClient, Client
from serving.errors import DeadlineExceeded
from serving.proxies import by_proxy
from tests.commands import run_python
from tests.conftest import Running, ServerProcess
from tests.photos import jpeg
from tests.ports import free_port

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def own_address() -> str:
    """Of this machine, and not of loopback, if it has one."""
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        try:
            one.connect(("10.1.2.3", 9))  # which sends nothing
        except OSError:
            return "127.0.0.1"
        return str(one.getsockname()[0])


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize(
    "address", ["{0}", "localhost:{1}", "dns:///localhost:{1}", "ipv4:{0}", "{0},{0}"]
)
async def test_this_machine_is_reached_past_them(
    running: Running, monkeypatch: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    monkeypatch.setenv(variable, NOBODY)
    address = address.format(running.address, running.address.rpartition(":")[2])
    async with AsyncClient(address) as client:
        assert [model.name for model in await client.list_models()] == ["pets"]
    with Client(address) as blocking:
        assert await asyncio.to_thread(blocking.list_models)


def test_so_it_is_for_the_commands(models: Path, start, tmp_path: Path) -> None:
    admin = free_port()
    server: ServerProcess = start(models, "--admin-port", str(admin), "--host", "0.0.0.0")
    port = server.address.rpartition(":")[2]
    (photo := tmp_path / "one.jpg").write_bytes(jpeg())
    own = {"PAWPRINT_SERVE_HOST": own_address()}
    environment = {**os.environ, **own, "PAWPRINT_SERVE_PORT": port, "http_proxy": NOBODY}
    for command in (
        ("serving.classify", photo, "--address", server.address),
        ("serving.models", "status", "--server", f"127.0.0.1:{admin}"),
        ("serving.probe",),
    ):
        done = run_python("-m", *command, env=environment)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_a_server_that_is_not_reached_through_one_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", NOBODY)
    said = "through the proxy that https_proxy names"
    done = run_python("-m", "serving.probe", "--address", "10.1.2.3:5", "--timeout", "0.2")
    assert done.returncode == 1 and f"10.1.2.3:5 is DEADLINE_EXCEEDED {said}" in done.stderr
    done = run_python("-m", "serving.classify", __file__, "--address", "10.1.2.3:5")
    assert done.returncode == 1 and f"does not answer {said}" in done.stderr
    with Client("10.1.2.3:5") as client, pytest.raises(DeadlineExceeded, match=f"allowed {said}"):
        client.list_models(timeout_s=0)


@pytest.mark.parametrize(
    ("environment", "target", "by"),
    [
        ({"grpc_proxy": "{}", "http_proxy": "http://h:1"}, "10.1.2.3:5", "grpc_proxy"),
        ({"https_proxy": "{}", "no_proxy": "localhost,"}, "10.1.2.3:5", "https_proxy"),
        ({"https_proxy": "", "http_proxy": "{}"}, "10.1.2.3:5", ""),
        ({"http_proxy": "socks5://127.0.0.1:1"}, "10.1.2.3:5", ""),
        ({"http_proxy": "{}", "no_proxy": "localhost, .1.2.3"}, "10.1.2.3:5", ""),
        ({"http_proxy": "{}", "no_proxy": "10.1.2.3:5"}, "10.1.2.3:5", "http_proxy"),
        ({"http_proxy": "{}", "no_proxy": "10.1.0.0/16"}, "dns:///10.1.2.3:5", ""),
        ({"http_proxy": "{}", "no_proxy": "10.2.0.0/16"}, "10.1.2.3:5", "http_proxy"),
        ({"http_proxy": "{}", "no_proxy": "*"}, "10.1.2.3:5", "http_proxy"),
        ({"http_proxy": "{}", "no_proxy": "Example.invalid"}, "a.example.invalid:5", ""),
        ({"http_proxy": "{}", "NO_PROXY": "10.1.2.3"}, "10.1.2.3", "http_proxy"),
        ({"http_proxy": "{}", "no_grpc_proxy": "fd00::/8"}, "[fd00::1]:5", ""),
        (
            {"http_proxy": "{}", "no_grpc_proxy": "", "no_proxy": "fd00::1"},
            "[fd00::1]:5",
            "http_proxy",
        ),
        ({"http_proxy": "{}"}, "10.1.2.3:5,10.1.2.4:5", ""),
        ({"http_proxy": "{}"}, "unix:/nowhere", ""),
        ({"http_proxy": "{}"}, "0.0.0.0:1", ""),
    ],
)
def test_what_is_said_is_what_grpc_does(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], target: str, by: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(f"http://127.0.0.1:{proxy.getsockname()[1]}"))
        assert by_proxy(target).partition(" (")[0] == (
            f" through the proxy that {by} names" if by else ""
        )
        with channel_opener(target, None)() as channel:
            call = channel.unary_unary("/any/Method", _registered_method=False)
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=0.3)
        asked, _, _ = select.select([proxy], [], [], 0)
        assert bool(asked) == bool(by)
