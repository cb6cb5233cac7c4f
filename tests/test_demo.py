"""`make demo` with a folder of one's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.repository import Repository
from tests.conftest import ROOT
from trainer.cartoons import write_cartoons


@pytest.mark.slow
def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    photos, models = tmp_path / "My [Photos]", tmp_path / "models"
    write_cartoons(photos, per_class=8)
    command = [sys.executable, "examples/demo.py", "--data", photos, "--weights", "none"]
    done = subprocess.run(
        [*command, "--models", models],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PAWPRINT_TRAIN_EPOCHS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert Repository(models).versions("My-Photos") == [1]
    assert "My-Photos/1: accuracy" in done.stdout
    assert done.stdout.endswith(f" --data '{photos}' --budget quick\n")
