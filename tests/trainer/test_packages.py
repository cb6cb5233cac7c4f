"""What is said of the installed packages, and what no training ends for."""

import importlib.metadata
from pathlib import Path

import pytest

from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer import packages
from trainer.train import main


def test_a_training_ends_well_with_the_other_onnx_runtime(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed = importlib.metadata.version
    renamed = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-gpu": "none", "pawprint": "none"}
    monkeypatch.setattr(packages, "version", lambda name: installed(renamed.get(name, name)))
    arguments = ["--data", photos(), "--name", "shapes", "--out", tmp_path, "--backbone", "tiny"]
    arguments += ["--weights", "none", "--size", 32, "--epochs", 1]
    assert main([str(argument) for argument in arguments]) == 0
    software = Repository(tmp_path).manifest("shapes", 1).software
    assert software["onnxruntime"] == installed("onnxruntime-gpu")
    assert {"torch", "pillow"} < software.keys() and "onnxruntime-gpu" not in software
