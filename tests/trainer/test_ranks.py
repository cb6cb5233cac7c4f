import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serving.errors import InvalidRequest
from tests.trainer.conftest import MakePhotos
from trainer.exit_status import MAY_PASS
from trainer.ranks import gpu_of, meeting_place, place_of, processes_here
from trainer.train import main


def given(rank: str, size: str) -> dict[str, str]:
    return {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost"}


def test_a_process_has_its_place_among_those_that_were_started_with_it() -> None:
    assert place_of(given("1", "2")) == (1, 2)
    assert place_of(given("0", "1")) == (0, 1)


@pytest.mark.parametrize("rank, size", [("2", "2"), ("-1", "2"), ("0", "0"), ("x", "2"), ("0", "")])
def test_a_place_that_there_is_not_is_refused(rank: str, size: str) -> None:
    with pytest.raises(InvalidRequest, match="RANK must be 0 to WORLD_SIZE - 1"):
        place_of(given(rank, size))


@pytest.mark.parametrize("count", ["x", "", "0", "-1", "2.0"])
def test_a_count_of_processes_here_that_is_none_is_refused_at_once(count: str) -> None:
    assert processes_here({}) == 1 and processes_here({"LOCAL_WORLD_SIZE": "2"}) == 2
    for known in ({}, given("0", "2")):
        with pytest.raises(InvalidRequest, match="LOCAL_WORLD_SIZE must be 1 or more, got"):
            place_of({**known, "LOCAL_WORLD_SIZE": count})


@pytest.mark.parametrize("rank", ["x", "", "-1", "2"])
def test_more_processes_than_gpus_are_refused(rank: str) -> None:
    assert gpu_of({}, 1) == 0 and gpu_of({"LOCAL_RANK": "1"}, 2) == 1
    with pytest.raises(InvalidRequest, match="LOCAL_RANK must be 0 to 1, .*--nproc-per-node 2"):
        gpu_of({"LOCAL_RANK": rank}, 2)


@pytest.mark.parametrize("port", [None, "", "x", "-1", "0", "70000", "22.5"])
def test_processes_that_can_not_meet_are_refused(port: str | None) -> None:
    assert meeting_place(given("0", "2") | {"MASTER_PORT": "29500"}) == "localhost:29500"
    with pytest.raises(InvalidRequest, match="MASTER_PORT a free port of it, 1 to 65535, got"):
        meeting_place(given("0", "2") | ({} if port is None else {"MASTER_PORT": port}))
    with pytest.raises(InvalidRequest, match="MASTER_ADDR must be the host .* got ''"):
        meeting_place({"MASTER_ADDR": "", "MASTER_PORT": "29500"})


def test_one_that_was_started_alone_speaks_whatever_rank_stands_there(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """As in a shell where the shares of a batch job were said by RANK."""
    monkeypatch.setenv("RANK", "1")
    net = ["--backbone", "tiny", "--weights", "none", "--size", "32", "--epochs", "1"]
    places = ["--data", str(photos(per_class=6)), "--out", str(tmp_path / "models")]
    assert main(["--name", "shapes", *places, *net]) == 0
    assert "Published" in capsys.readouterr().out


def test_train_refuses_a_place_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for variable, text in given("2", "2").items():
        monkeypatch.setenv(variable, text)
    assert main(["--data", "here", "--name", "shapes"]) == 2
    assert capsys.readouterr().err == "error: RANK must be 0 to WORLD_SIZE - 1, got '2' and '2'\n"


def test_a_port_that_another_program_has_is_one_line(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for variable, text in (given("0", "1") | {"MASTER_PORT": port}).items():
            monkeypatch.setenv(variable, text)
        net = ["--backbone", "tiny", "--weights", "none", "--size", "32", "--epochs", "1"]
        places = ["--data", str(photos()), "--out", str(tmp_path / "models")]
        assert main(["--name", "shapes", *places, *net]) == MAY_PASS
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: the processes can't meet at localhost:{port} (MASTER_ADDR, MA")
    assert "address already in use" in said


@pytest.mark.slow
def test_ctrl_c_ends_who_waits_for_the_first_process(photos: MakePhotos, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        place = given("1", "2") | {"MASTER_ADDR": "127.0.0.1"}
        place["MASTER_PORT"] = str(silent.getsockname()[1])
        command = [sys.executable, "-m", "trainer.train", "--data", photos(), "--name", "pets"]
        command += ["--out", tmp_path / "models", "--backbone", "tiny", "--weights", "none"]
        with subprocess.Popen(
            command, env=os.environ | place, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                connection, _ = silent.accept()
                with connection:
                    process.send_signal(signal.SIGINT)
                    _, said = process.communicate(timeout=30)
            finally:
                process.kill()
    assert (process.returncode, said) == (130, "error: interrupted; nothing was published\n")
