"""`models load | unload | status` against a real server."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import grpc
import pytest

from tests.commands import run_python
from tests.conftest import running_server
from tests.ports import free_port
from tests.tiny import build_version, golden_of


@pytest.fixture
def admin(models: Path, start) -> str:
    build_version(models, "pets", seed=1)
    port = free_port()
    start(models, "--control", "explicit", "--admin-port", str(port))
    return f"127.0.0.1:{port}"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_python("-m", "serving.models", *arguments)


def test_load_unload_and_status(admin: str, models: Path) -> None:
    done = run("load", "pets/1", "--server", admin)
    assert (done.returncode, done.stdout) == (0, "loaded of pets: 1, 2\n")
    done = run("unload", "pets/2", "--server", admin, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"name": "pets", "versions": [1]})
    assert run("unload", "pets/1", "--server", admin).stdout == "loaded of pets: none\n"
    assert run("load", "pets/1", "--server", admin).stdout == "loaded of pets: 1\n"
    build_version(models, "pets", golden=golden_of(seed=9))
    done = run("load", "pets/3", "--server", admin)
    assert done.returncode == 1 and done.stderr.startswith("error: pets/3: its ")
    done = run("load", "pets", "--server", admin)  # what the policy asks for: 3, which is refused
    assert done.returncode == 0
    status = json.loads(run("status", "--server", admin, "--json").stdout)
    assert (status["control"], status["policy"]) == ("explicit", "latest:1")
    found = [(v["version"], v["state"], v["default"]) for v in status["versions"]]
    assert found == [(1, "serving", True), (3, "refused", False)]
    lines = run("status", "--server", admin).stdout.splitlines()
    assert lines[1].split()[:6] == ["pets", "1", "serving,", "default", "cpu", "fp32"]
    assert lines[2].split()[:3] == ["pets", "3", "refused"] and "golden" in lines[2]


def test_what_lies_in_a_version_never_hides_the_status(admin: str, models: Path) -> None:
    """A name that is no text, and more of them than a message holds."""
    build_version(models, "pets")
    for number in range(20_000):
        (models / "pets/3" / f"{number:0200}").touch()
    (models / os.fsdecode(b"pets/3/+\xff")).touch()
    said = "pets/3 is refused: +\\udcff is not part of the version; 000"
    done = run("load", "pets/3", "--server", admin)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {said}")
    status = json.loads(run("status", "--server", admin, "--json").stdout)
    (reason,) = (v["reason"] for v in status["versions"] if v["state"] == "refused")
    assert reason.startswith(said) and reason.endswith(" and 19981 more")


def test_what_is_no_message_is_the_callers_mistake(admin: str) -> None:
    with grpc.insecure_channel(admin) as channel:
        with pytest.raises(grpc.RpcError, match="can't be parsed") as raised:
            channel.unary_unary("/pawprint.v1.AdminService/LoadModel")(b"\xff\xff")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_admin_port_on_a_network_is_warned_of(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(models, admin_port=free_port()):
        assert "AdminService" not in caplog.text
    async with running_server(models, admin_port=free_port(), admin_host="0.0.0.0"):
        assert "AdminService asks for no token and is not encrypted" in caplog.text


async def test_at_the_port_of_the_calls_it_says_which_it_wants(models: Path) -> None:
    async with running_server(models) as running:
        done = await asyncio.to_thread(run, "status", "--server", running.address)
    assert done.returncode == 2 and "--server wants the port of serve --admin-port" in done.stderr


def test_what_is_wrong_is_one_line(admin: str) -> None:
    for arguments, status, words in (
        (("load", "birds", "--server", admin), 2, "no model 'birds'"),
        (("unload", "pets/7", "--server", admin), 2, "has no version '7' loaded"),
        (("unload", "pets/", "--server", admin), 2, "no version follows the slash of 'pets/'"),
        (("status", "--server", "127.0.0.1:1"), 1, "does not answer"),
        (("status", "--server", "127.0.0.1:1"), 1, "; --server wants the port of serve --admin-p"),
        (("status",), 2, "--server"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
        assert done.stderr.startswith("error: ") and words in done.stderr
