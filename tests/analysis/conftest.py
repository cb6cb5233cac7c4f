"""A small version trained on cartoons, once for all tests of the analysis."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.quick_exports import read_operators_once
from trainer.cartoons import write_cartoons
from trainer.train import main as train

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see trainer.train
read_operators_once()


@dataclass(frozen=True, kw_only=True)
class Trained:
    models: Path  # holds cartoon/1
    data: Path


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    write_cartoons(folder / "cartoons", per_class=80, seed=5)
    run_here(
        train,
        *("--data", folder / "cartoons", "--name", "cartoon", "--size", 32),
        *("--backbone", "tiny", "--weights", "none", "--epochs", 12, "--out", folder / "models"),
    )
    return Trained(models=folder / "models", data=folder / "cartoons")


@pytest.fixture
def trained(trained_once, tmp_path) -> Trained:
    """A copy that a test may spoil."""
    shutil.copytree(trained_once.models, tmp_path / "models")
    return Trained(models=tmp_path / "models", data=trained_once.data)


def run_here(main: Callable[[list[str]], int], *arguments: object, status: int = 0) -> str:
    """Run one of our commands in this process, as torch takes seconds to import; returns stdout and
    stderr together."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            got = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse
            got = int(ended.code or 0)
    assert got == status, said.getvalue()
    return said.getvalue()
