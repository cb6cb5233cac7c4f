from pathlib import Path

import pytest

from serving.errors import InvalidRequest
from tests.trainer.conftest import MakePhotos
from trainer.ranks import place_of
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
