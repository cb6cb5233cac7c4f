import time
from typing import Any

import numpy as np
import pytest

from serving.classification import best_labels
from tests.tiny import softmax
from trainer.evaluation import measure, measure_latency

_HELD_S, _TAKEN_S = 0.02, 0.001


class _Held:
    """Every other run waits for a core, as on a busy machine."""

    def __init__(self) -> None:
        self._runs = 0

    def run(self, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        self._runs += 1
        until = time.perf_counter() + (_HELD_S if self._runs % 2 else _TAKEN_S)
        while time.perf_counter() < until:
            pass
        return images, images


def test_the_latency_is_that_of_the_net_where_half_of_the_runs_wait_for_a_core():
    held: Any = _Held()
    taken = measure_latency({"fp32": held}, np.zeros((1, 8, 8, 3), np.uint8))
    assert 1e3 * _TAKEN_S <= taken["fp32"] < 1e3 * _HELD_S / 4


def test_right_is_the_label_that_callers_are_told_where_probabilities_tie():
    """As of a net that has learnt nothing: its logits differ by less than its probabilities can."""
    labels, targets = ("cat", "dog", "fox"), np.array([0, 1, 2])
    logits = np.eye(3, dtype=np.float32)[[1, 1, 0]] * np.float32(1e-9)
    probabilities = softmax(logits)
    told = [best_labels(row, labels, 1)[0].index for row in probabilities]
    metrics = measure(probabilities, logits, targets, labels)
    assert metrics.correct == np.sum(told == targets) == 1
    assert metrics.per_class == {"cat": (1, 1), "dog": (0, 1), "fox": (0, 1)}
    assert metrics.accuracy == 1 / 3


def test_the_figures_of_the_manifest_by_hand():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.05, 0.9, 0.05]])
    made = measure(probabilities, np.log(probabilities), np.array([0, 0, 0, 1]), ("a", "b", "c"))
    assert (made.photos, made.correct, made.accuracy) == (4, 2, 0.5)
    assert (made.accuracy_low, made.accuracy_high) == pytest.approx((0.15, 0.85), abs=1e-4)
    assert made.nll == pytest.approx(-np.log([0.8, 0.1, 0.3, 0.9]).mean())
    # Sure to 0.8 twice, right once; to 0.6, wrong; to 0.9, right.
    assert made.ece == pytest.approx((2 * 0.3 + 0.6 + 0.1) / 4)
    assert made.per_class == {"a": (1, 3), "b": (1, 1), "c": (0, 0)}
