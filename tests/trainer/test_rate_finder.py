"""The learning-rate range test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.small_disk import small_disk
from tests.trainer.conftest import MakePhotos
from trainer.adversarial import Adversary
from trainer.idle import _BEYOND_RATES
from trainer.learner import Learner
from trainer.rate_finder import smooth, suggest
from trainer.tiny import Tiny
from trainer.train import main

RATES = np.logspace(-7, 0, 100)


def valley(lowest: float) -> np.ndarray:
    """A loss that is level, falls to its minimum at that rate, and rises steeply."""
    distance = np.log10(RATES) - np.log10(lowest)
    return np.where(distance < 0, 2 - np.exp(-(distance**2)), 1 + distance**2)


@pytest.mark.parametrize("lowest", [1e-4, 1e-2])
def test_a_tenth_of_the_rate_of_the_lowest_loss_is_suggested(lowest: float):
    noise = np.random.default_rng(0).normal(0, 0.05, 100)
    assert suggest(RATES, valley(lowest) + noise) == pytest.approx(lowest / 10, rel=0.8)


def test_where_no_rate_lowers_the_loss_none_is_suggested():
    assert suggest(RATES, np.linspace(1, 2, 100)) is None


def test_a_single_low_step_does_not_decide():
    losses = valley(1e-3)
    losses[5] = 0.5
    assert suggest(RATES, losses) == pytest.approx(1e-4, rel=0.8)


def test_smoothing_keeps_a_line_and_does_not_lag():
    line = np.linspace(3, 1, 50)
    assert np.allclose(smooth(line)[5:-5], line[5:-5])
    step = np.repeat([2.0, 1.0], 25)
    assert smooth(step)[24] == pytest.approx(2 - 5 / 11) and smooth(step)[31] == 1.0
    assert np.allclose(smooth(np.array([4.0, 2.0])), 3.0), "fewer losses than the window"


def test_the_command_suggests_a_rate_that_learns_and_publishes_nothing(
    photos: MakePhotos, tmp_path, capsys
):
    models = tmp_path / "models"
    status = main(
        ["--data", str(photos(per_class=12)), "--name", "shapes", "--out", str(models),
         "--backbone", "tiny", "--weights", "none", "--size", "32", "--batch-size", "16",
         "--find-rate", "--json"]
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    found = json.loads(said.out)
    assert 1e-6 < found["suggested"] < 0.1
    assert f"--learning-rate {found['suggested']:.1e}" in said.err
    assert found["rates"] == sorted(found["rates"]) and found["rates"][0] == pytest.approx(1e-7)
    assert np.mean(found["losses"][:5]) > min(smooth(np.array(found["losses"])))
    with Image.open(found["plot"]) as plot:
        assert plot.size[0] > 300
    assert json.loads((models / "shapes-learning-rate.json").read_text()) == found
    assert not [path for path in models.glob("shapes/*") if path.name.isdigit()]


@pytest.mark.slow
def test_what_is_named_changes_nothing_that_is_found(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    flags = ["--data", photos(per_class=12), "--name", "shapes", "--out", tmp_path / "models"]
    flags += ["--backbone", "tiny", "--weights", tmp_path / "tiny.pth", "--size", 32, "--thaw", 1]
    values = {"learning_rate": 0.1, "warmup": 0.5, "schedule": "constant", "ema": 0.9}
    values |= {"patience": 1, "max_accuracy_loss": 0.5, "unfamiliar": 0.1}
    values |= {place: tmp_path / "state" for place in ("checkpoints", "logs")}
    named = []
    for name in _BEYOND_RATES:
        flag = f"--{name.replace('_', '-')}"
        named += [flag, values[name]] if name in values else [flag]
    found = []
    for more in ([], named):
        arguments = [str(each) for each in [*flags, "--find-rate", "--json", *more]]
        assert main(arguments) == 0
        said = capsys.readouterr()
        found.append(json.loads(said.out))
        told = [line for line in said.err.splitlines() if "no part in this run" in line]
        assert len(told) == bool(more)
    assert found[0] == found[1] and set(told[0].split(": ")[1].split(" (")[0].split(", ")) == {
        flag for flag in named if str(flag).startswith("--")
    }


def test_an_adversary_is_as_strong_at_every_rate(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that grew with the rate would raise the loss at rates that lower it."""
    sizes: list[float] = []

    def attack(self: Adversary, model: nn.Module, images: Tensor, *where: Any) -> Tensor:
        attacked = honest(self, model, images, *where)
        sizes.append(float((attacked - images).abs().max()))
        return attacked

    honest = Adversary.attack
    monkeypatch.setattr(Adversary, "attack", attack)
    status = main(
        ["--data", str(photos()), "--name", "shapes", "--out", str(tmp_path),
         "--backbone", "tiny", "--weights", "none", "--size", "32", "--batch-size", "8",
         "--find-rate", "--adversarial", "fast@8/255"]
    )  # fmt: skip
    assert status == 0
    assert len(sizes) > 20 and sizes == pytest.approx([8 / 255] * len(sizes), abs=1e-6)


def test_the_photos_tried_are_balanced_as_in_training(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = photos(per_class=12)
    for photo in sorted((folder / "squares").iterdir())[4:]:
        photo.unlink()
    drawn: list[int] = []

    def learn(self: Learner, batch: list[int], **where: Any) -> tuple[float, int]:
        drawn.extend(self._targets[batch].tolist())
        return honest(self, batch, **where)

    honest = Learner.learn
    monkeypatch.setattr(Learner, "learn", learn)
    status = main(
        ["--data", str(folder), "--name", "shapes", "--out", str(tmp_path / "models"),
         "--backbone", "tiny", "--weights", "none", "--size", "32", "--batch-size", "8",
         "--find-rate", "--balance", "sampling"]
    )  # fmt: skip
    assert status == 0
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.12), "a quarter of the photos are squares"


def test_few_photos_in_a_step_whose_losses_differ_are_no_divergence(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As of a probe that is sure: some batches cost next to nothing, the next one a hundred times
    as much, at rates that change no weight."""

    def learn(self: Learner, batch: list[int], **where: Any) -> tuple[float, int]:
        loss, right = honest(self, batch, **where)
        return loss * {0: 0.01, 1: 0.01, 20: 5.0}.get(where["step"], 1.0), right

    honest = Learner.learn
    monkeypatch.setattr(Learner, "learn", learn)
    status = main(
        ["--data", str(photos(per_class=12)), "--name", "shapes", "--out", str(tmp_path),
         "--backbone", "tiny", "--weights", "none", "--size", "32", "--batch-size", "8",
         "--find-rate"]
    )  # fmt: skip
    assert status == 0
    rates = json.loads((tmp_path / "shapes-learning-rate.json").read_text())["rates"]
    assert len(rates) > 50 and rates[-1] > 1e-3


def test_without_epochs_there_is_nothing_to_find(photos: MakePhotos, capsys):
    assert main(["--data", str(photos()), "--backbone", "resnet18", "--epochs", "0",
                 "--find-rate"]) == 2  # fmt: skip
    assert "epochs must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_costs_the_plot_and_not_the_rate(photos: MakePhotos, tmp_path: Path, capsys):
    with small_disk(tmp_path / "disk", 4096) as disk:
        assert main(
            ["--data", str(photos(per_class=12)), "--name", "shapes", "--out", str(disk),
             "--backbone", "tiny", "--weights", "none", "--size", "32", "--find-rate"]
        ) == 75  # fmt: skip
        said = capsys.readouterr()
        assert said.err == f"error: {disk}/shapes-learning-rate.png: No space left on device\n"
        assert "Suggested: --learning-rate" in said.out
