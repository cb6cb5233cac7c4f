"""torch.compile and deterministic operators, for real."""

import os
from pathlib import Path

import pytest
import torch

from tests.commands import run_python
from tests.trainer.conftest import MakePhotos
from tests.trainer.test_training import Run
from trainer.determinism import deterministic
from trainer.errors import FailedCheck


def weights(run: Run) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in run.classifier.state_dict().values()])


def test_deterministic_operators_suffice_and_give_the_same_weights(photos: MakePhotos):
    runs = [Run(photos, "tiny", per_class=6, epochs=1, batch_size=8) for _ in range(2)]
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        for run in runs:
            run()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(weights(runs[0]), weights(runs[1]))


def test_an_operator_that_has_no_deterministic_form_is_named():
    """One that lacks it on the CPU too; other errors stay what they are."""
    pooled, places = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    with pytest.raises(FailedCheck, match="^max_unpool.* can't be .*leave out --deterministic$"):
        with deterministic(True):
            torch.nn.functional.max_unpool2d(pooled, places, 2)
    with pytest.raises(RuntimeError, match="another"), deterministic(True):
        raise RuntimeError("another")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_without_a_compiler_it_says_what_to_leave_out(photos: MakePhotos, tmp_path: Path):
    nowhere = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")}
    done = run_python(
        *("-m", "trainer.train", "--data", photos(), "--name", "shapes", "--compile"),
        *("--out", tmp_path / "models", "--backbone", "tiny", "--size", 32, "--weights", "none"),
        *("--epochs", 2, "--batch-size", 8),
        env={**os.environ, **nowhere},
        timeout=300,
    )
    assert done.returncode == 2
    assert "Found" not in done.stdout, "no photo has been read"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the net can't be compiled on this machine (")
    assert last.endswith("leave out --compile")
    assert list((tmp_path / "models").glob("shapes/[0-9]*")) == []


@pytest.mark.slow
def test_a_compiled_net_learns_as_it_does_otherwise(photos: MakePhotos):
    plain, compiled = (
        Run(
            photos, "tiny", per_class=6, epochs=2, batch_size=8, learning_rate=1e-3, compile=compile
        )
        for compile in (False, True)
    )
    plain()
    compiled()
    losses = [[(e.train_loss, e.val_loss) for e in run.reported[1:]] for run in (plain, compiled)]
    assert losses[1] == [pytest.approx(pair, rel=1e-5) for pair in losses[0]]
    assert losses[0][1][0] < 0.9 * losses[0][0][0]  # and it does learn
