"""The oldest packages that pyproject.toml allows are enough."""

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.client import Client
from serving.repository import Repository
from tests.conftest import ROOT, ServerProcess
from tests.environments import environment_with
from tests.photos import jpeg
from trainer.cartoons import write_cartoons

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed(extra: str) -> Iterator[str]:
    """What an extra asks for, with that of the extras it names."""
    for requirement in PROJECT["optional-dependencies"][extra]:
        if also := re.fullmatch(r"pawprint\[(\S+)\]", requirement):
            for other in also[1].split(","):
                yield from needed(other)
        else:
            yield requirement


@pytest.mark.slow
def test_the_oldest_packages_train_analyse_and_serve(
    pytestconfig: pytest.Config, start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    packages = (*PROJECT["dependencies"], *needed("train"))
    assert "torch>=2.11" in packages
    oldest = ("--resolution", "lowest-direct", "--only-binary", ":all:")  # built for this Python
    python = environment_with(pytestconfig.cache, "oldest", *oldest, *packages) / "bin/python"
    photos, models = tmp_path / "photos", tmp_path / "models"
    write_cartoons(photos, per_class=8)
    for command in (
        (
            *("trainer.train", "--data", photos, "--name", "pets", "--out", models),
            *("--backbone", "tiny", "--weights", "none", "--size", "32", "--epochs", "1"),
            *("--int8", "--fp16", "--max-accuracy-loss", "1"),
        ),
        (
            *("trainer.analysis.analyze", "--data", photos, "--models", models, "pets"),
            *("--budget", "quick", "--photos", "4"),
        ),
    ):
        done = subprocess.run(
            [python, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
    assert set(Repository(models).manifest("pets", 1).variants) == {"fp32", "int8", "fp16"}
    with Client(start(models, python=python).address) as client:
        assert client.classify([jpeg()], model="pets").results[0].label.probability > 0
