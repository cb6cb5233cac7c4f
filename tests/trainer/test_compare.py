"""`train --compare`: four ways, one table."""

import json
from pathlib import Path

import pytest
import torch

from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer.tiny import Tiny
from trainer.train import main


@pytest.mark.slow
def test_four_ways_are_four_versions_in_one_table(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    out = tmp_path / "models"
    arguments = [
        *("--data", photos(per_class=12), "--name", "shapes", "--out", out, "--backbone", "tiny"),
        *("--weights", tmp_path / "tiny.pth", "--size", 32, "--epochs", 1, "--compare", "--json"),
    ]
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [row["way"] for row in rows] == ["frozen", "fine-tuned", "full", "scratch"]
    assert json.loads((out / "shapes-comparison.json").read_text()) == rows
    assert (out / "shapes-comparison.png").read_bytes().startswith(b"\x89PNG")
    repository = Repository(out)
    for row in rows:
        name, number = row["version"].split("/")
        metrics = repository.manifest(name, int(number)).variants["fp32"].metrics
        assert row["accuracy"] == metrics.accuracy and row["seconds"] > 0
    assert rows[0]["trained"] == "linear probe" and "scratch" in rows[3]["trained"]
    assert "Ways of transfer learning" in captured.err


def test_without_weights_there_is_nothing_to_compare(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--data", photos(), "--out", tmp_path, "--weights", "none", "--compare"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "error: --compare needs pre-trained weights" in capsys.readouterr().err
