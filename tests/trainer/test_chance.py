"""Whether what is right is more than chance gives."""

import numpy as np
import pytest

from tests.trainer.conftest import MakePhotos
from trainer.chance import may_be_chance, right_by_chance
from trainer.config import TrainConfig
from trainer.evaluation import measure
from trainer.metrics import softmax
from trainer.train import main

LABELS = ("cat", "dog", "owl")


def test_by_chance_the_commonest_label_is_as_often_right_as_it_occurs() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    assert right_by_chance(np.zeros(100, int), labels, 3) == pytest.approx(0.7)
    assert right_by_chance(labels, labels, 3) == pytest.approx(0.49 + 0.04 + 0.01)
    shuffled = np.random.default_rng(0).permutation(np.repeat(labels, 1000))
    drawn = np.random.default_rng(1).permutation(shuffled)
    assert right_by_chance(drawn, shuffled, 3) == pytest.approx(
        np.mean(drawn == shuffled), abs=0.01
    )


@pytest.mark.parametrize(
    ("right", "photos", "weights", "said"),
    [
        (15, 30, "none", "--find-rate"),
        (50, 100, "imagenet", "are the labels right"),
        (3, 3, "none", "more test photos"),
        (15, 29, "none", "more test photos"),
        (80, 100, "none", None),
        (8, 8, "imagenet", None),
    ],
)
def test_what_is_said_of_a_net_that_chance_explains(
    right: int, photos: int, weights: str, said: str | None
) -> None:
    """Photos of two kinds, and answers of which every so many are right in both."""
    labels = np.arange(photos) % 2
    wrong = np.arange(photos) >= right
    logits = np.eye(2)[np.where(wrong, 1 - labels, labels)] * 4.0
    metrics = measure(softmax(logits), logits, labels, LABELS[:2])
    config = TrainConfig(data="d", name="n", weights=weights)
    line = may_be_chance(metrics, logits, labels, config)
    assert line is None if said is None else line is not None and said in line


def test_a_rare_class_that_is_found_is_more_than_chance() -> None:
    """Though always saying the common one would be right as often."""
    labels = np.repeat([0, 1], [900, 100])
    logits = np.eye(2)[labels] * 4.0
    logits[:80] = logits[:80, ::-1]  # 0.92 right, both classes found
    metrics = measure(softmax(logits), logits, labels, LABELS[:2])
    assert metrics.accuracy == 0.92
    config = TrainConfig(data="d", name="n")
    assert may_be_chance(metrics, logits, labels, config) is None
    always = np.tile([4.0, 0.0], (1000, 1))
    metrics = measure(softmax(always), always, labels, LABELS[:2])
    assert may_be_chance(metrics, always, labels, config) is not None


def test_a_net_that_is_right_of_no_photo_is_not_above_a_chance_of_nothing() -> None:
    labels, logits = np.zeros(40, int), np.tile([0.0, 4.0], (40, 1))
    metrics = measure(softmax(logits), logits, labels, LABELS[:2])
    line = may_be_chance(metrics, logits, labels, TrainConfig(data="d", name="n"))
    assert line is not None and "0 of 40 test photos right" in line and "0.0%" in line


def test_train_says_so(photos: MakePhotos, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a net that could learn nothing."""
    folder = photos(per_class=100, name="shapes")
    flags = ["--data", str(folder), "--out", str(tmp_path / "models"), "--backbone", "tiny"]
    flags += ["--weights", "none", "--size", "32", "--epochs", "1", "--learning-rate", "1e-8"]
    assert main([*flags, "--test-fraction", "0.3"]) == 0
    assert "test photos right may be chance" in capsys.readouterr().out
