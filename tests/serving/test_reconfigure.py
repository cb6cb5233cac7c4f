"""SIGHUP and --check, of the command in a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from serving.client import Client
from serving.errors import InvalidRequest
from serving.repository import Repository
from tests.commands import run_python, unread
from tests.conftest import ROOT, ServerProcess
from tests.photos import jpeg
from tests.ports import free_port
from tests.serving.test_loading import flip
from tests.tiny import build_version, golden_of
from tests.waiting import until, until_said

UNCHANGED = "the configuration stays as it was: "


def hang_up(server: ServerProcess, answer: str) -> None:
    """And wait for what the server says to it."""
    before = len(server.log.read_text())
    server.process.send_signal(signal.SIGHUP)
    until_said(server.log, answer, after=before)


def test_sighup_takes_over_what_can_change(models: Path, tmp_path: Path, start) -> None:
    build_version(models, "pets", seed=1)
    config = tmp_path / "serve.toml"
    config.write_text('versions = "latest:1"\ncontrol = "explicit"\nmax_batch = 8\n')
    server = start(models, "--config", str(config))
    with Client(server.address) as client:
        (model,) = client.list_models()
        assert model.versions == (2,)
        config.write_text('versions = "all"\ncontrol = "explicit"\nmax_batch = 4\nmax_photos = 2\n')
        hang_up(server, "changed: max_photos, versions")
        until(lambda: client.list_models()[0].versions == (1, 2))
        with pytest.raises(InvalidRequest, match="at most 2 are allowed"):
            client.classify([jpeg()] * 3, model="pets")
        config.write_text("versions = 7\n")
        build_version(models, "pets", seed=2)
        hang_up(server, f"{UNCHANGED}versions in")
        assert client.list_models()[0].versions == (1, 2)
        config.write_text('versions = "latest:1"\ncontrol = "explicit"\nmax_batch = 8\n')
        hang_up(server, "changed: max_photos, versions")
        until(lambda: client.list_models()[0].versions == (3,))
        assert client.classify([jpeg()] * 3, model="pets").version == 3
    status, _, err = server.stop()
    assert status == 0 and "Traceback" not in err
    assert "only a restart changes: max_batch" in err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_pipe_is_not_read_again(models: Path, tmp_path: Path, start, workers: str) -> None:
    """As `serve --config <(...)` has it: the server would wait for its end, and answer nobody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("max_photos = 2\n",))
    writer.start()
    server = start(models, "--config", str(pipe), "--workers", workers)
    writer.join()
    hang_up(server, f"{UNCHANGED}the configuration {pipe} is no file that can be read again")
    with Client(server.address) as client:
        with pytest.raises(InvalidRequest, match="at most 2 are allowed"):
            client.classify([jpeg()] * 3, model="pets")
    assert server.stop()[0] == 0


# Is sent SIGHUP when it imports numpy.
HUNG_UP_EARLY = """
import importlib.abc, os, signal, sys
class HungUp(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, HungUp())
from serving.launch import serve
sys.exit(serve())
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sighup_while_packages_are_imported_is_one_of_the_server(
    models: Path, start, workers: str
) -> None:
    server = start(models, "--workers", workers, program=("-c", HUNG_UP_EARLY))
    until_said(server.log, "changed: nothing", times=int(workers))
    status, _, err = server.stop()
    assert status == 0 and "Traceback" not in err


def test_without_control_versions_change_at_sighup_alone(models: Path, start) -> None:
    port = free_port()
    server = start(models, "--control", "none", "--admin-port", str(port))
    build_version(models, "pets", seed=1)
    refused = run_python("-m", "serving.models", "load", "pets/2", "--server", f"127.0.0.1:{port}")
    assert refused.returncode == 2
    assert "`control` of this server is none: only SIGHUP changes versions" in refused.stderr
    with Client(server.address) as client:
        assert client.list_models()[0].versions == (1,)
        hang_up(server, "changed: nothing")
        until(lambda: client.list_models()[0].versions == (2,))


def test_what_can_not_change_alone_changes_nothing_and_the_next_sighup_does(
    models: Path, tmp_path: Path, start
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("poll_s = 0\n")
    server = start(models, "--config", str(config))
    config.write_text("max_photos = 500\nmax_queue = 1000\n")  # the queue only at a restart
    hang_up(server, f"{UNCHANGED}max_queue must be at least")
    config.write_text('max_photos = 3\nonly = "pets,fish"\n')
    hang_up(server, f"{UNCHANGED}no model 'fish' in")
    config.write_text("max_photos = 2\npoll_s = 86400\n")
    hang_up(server, "changed: max_photos, poll_s")  # both from what they were at the start
    with Client(server.address) as client:

        def at_most_2() -> bool:
            try:
                return not client.classify([jpeg()] * 3, model="pets")
            except InvalidRequest:
                return True

        assert at_most_2()
        config.write_text("poll_s = 0.1\n")  # ends the sleep of a day
        hang_up(server, "changed: max_photos, poll_s")
        assert not at_most_2()
        time.sleep(0.3)  # the look that the signal brings is over: what comes now is polled for
        build_version(models, "pets", seed=1)
        until(lambda: client.list_models()[0].versions == (2,))
    status, _, err = server.stop()
    assert status == 0 and "Traceback" not in err
    assert "only a restart changes: max_queue" in err


def check(*flags: str, through: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*through, sys.executable, "-m", "serving.serve", "--check", "--device", "cpu", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_check_says_what_would_be_served(models: Path) -> None:
    Repository(models).promote("pets", 1)
    build_version(models, "pets", seed=1)
    done = check("--models", str(models), "--port", "1")  # it does not listen
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["pets/1 (stable): serving on cpu in fp32", "pets/2: serving on cpu in fp32"],
    )


def test_check_fails_on_a_version_that_is_refused(models: Path) -> None:
    build_version(models, "pets", golden=golden_of(seed=5))
    done = check("--models", str(models))
    assert done.returncode == 1
    assert done.stdout.startswith("pets/1: serving on cpu in fp32\npets/2: refused: pets/2: its ")


def test_check_without_a_sound_model_and_with_a_wrong_setting(models: Path) -> None:
    flip(models / "pets/1/model.onnx")
    done = check("--models", str(models))
    assert done.returncode == 1 and "error: no model to serve in" in done.stderr
    done = check("--models", str(models), "--versions", "newest")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: versions must be latest:N, all, alias, or numbers")


def test_check_fails_on_what_is_asked_for_and_not_there(models: Path) -> None:
    flags = ("--versions", "1,7", "--canary", "pets=9:0.1", "--shadow", "dogs=x:1")
    done = check("--models", str(models), *flags)
    assert (done.returncode, done.stdout.splitlines()) == (
        1,
        [
            "pets/1: serving on cpu in fp32",
            "versions asks for 7, which no model has",
            "canary of pets: no version or alias 9 of it is served",
            "shadow of dogs: no model of this name is served",
        ],
    )
    build_version(models, "dogs")
    build_version(models, "dogs", seed=1)
    done = check("--models", str(models), "--versions", "2", "--canary", "dogs=1:0.1")
    assert (done.returncode, done.stdout.splitlines()[2:]) == (
        1,
        ["versions is 2, and pets has none of these"],
    )
    done = check("--models", str(models), "--versions", "1,2", "--canary", "dogs=1:0.1")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        *[("birds/aliases/stable", 0), ("birds/aliases", 0o444), ("birds", 0)],
        ("birds", 0o444),  # the names of its versions alone
    ],
)
def test_a_model_that_can_not_be_read_is_said_and_the_others_are_served(
    models: Path, place: str, mode: int
) -> None:
    through: tuple[str, ...] = ()
    if os.geteuid() == 0:  # whom no permission stops, but without its capabilities
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, to give privileges up")
        through = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    build_version(models, "birds")
    Repository(models).promote("birds", 1)
    (models / place).chmod(mode)
    both = check("--models", str(models), through=through)
    alone = check("--models", str(models), "--only", "birds", through=through)
    (models / place).chmod(0o700)
    assert both.returncode == 1 and "Traceback" not in both.stderr
    first, second = both.stdout.splitlines()
    assert first == "pets/1: serving on cpu in fp32"
    assert second.startswith("birds: ") and "Permission denied" in second
    assert alone.returncode == 2
    last = alone.stderr.splitlines()[-1]
    assert last.startswith("error: no model to serve in") and "Permission denied" in last


def test_a_reader_of_the_check_that_leaves_ends_it_without_a_word(models: Path) -> None:
    flags = ("--check", "--device", "cpu", "--models", models)
    status, said = unread("-m", "serving.serve", *flags)
    assert status == 1 and "Error" not in said
