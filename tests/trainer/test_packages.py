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


def test_packages_older_than_asked_for_are_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked = 'onnx>=1.19; extra == "train"', "torch>=2.11", "scipy>=1.14", "rich>=99", "optuna>=99"
    installed = {"pawprint": "0", "onnx": "1.18.2", "torch": "2.11.0a0+nv25.10", "scipy": "1.14"}
    for name, version in installed.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        needs = [f"Requires-Dist: {each}\n" for each in asked if name == "pawprint"]
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(needs)}"
        (folder / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.outdated() == ["onnx is 1.18.2, older than the 1.19 that Pawprint asks for"]
    (tmp_path / "photos").mkdir()
    assert main(["--data", str(tmp_path / "photos")]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("Warning: onnx is 1.18.2") and "'.[train]'" in said.out
    assert said.err.startswith("error: ")
