"""Against figures worked by hand."""

import math

import numpy as np
import pytest

from trainer.metrics import (
    accuracy,
    chance_of_balanced_gain,
    chance_of_gain,
    confusion_matrix,
    divergence,
    expected_calibration_error,
    mean_recall,
    nll,
    reliability,
    softmax,
    wilson_interval,
)


def test_accuracy_counts_the_rows_that_are_highest_at_their_label():
    scores = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 5.0], [9.0, 1.0]])
    assert accuracy(scores, np.array([1, 0, 0, 0])) == 0.75


def test_wilson_interval_of_a_published_example():
    # 81 of 263: Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_interval_solves_its_own_equation():
    z = 1.959964
    for correct, total in [(3, 10), (0, 7), (7, 7), (149, 158)]:
        share = correct / total
        for bound in wilson_interval(correct, total):
            distance = abs(share - bound)
            assert distance == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), abs=1e-12)


def test_wilson_interval_stays_within_0_and_1_and_has_a_width():
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(0, 10)[1] > 0.2
    assert wilson_interval(10, 10)[1] == pytest.approx(1) and wilson_interval(10, 10)[0] < 0.8


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(correct: int, total: int):
    with pytest.raises(ValueError, match="expected 0 <= correct <= total"):
        wilson_interval(correct, total)


def test_softmax_of_log_odds():
    assert softmax(np.log([[1.0, 3.0]])) == pytest.approx(np.array([[0.25, 0.75]]))
    assert softmax(np.array([[1e5, 0.0]])) == pytest.approx(np.array([[1.0, 0.0]]))


def test_nll_is_the_mean_of_minus_log_probability():
    logits = np.log([[0.25, 0.75], [0.5, 0.5]])
    assert nll(logits, np.array([0, 1])) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert nll(logits + 1e4, np.array([0, 1])) == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_divergence_is_the_mean_of_what_each_row_loses():
    expected, got = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    assert divergence(expected, got + 7) == pytest.approx((math.log(2) + math.log(2 / 3)) / 2 / 2)


@pytest.mark.parametrize("row", [[-np.inf, np.inf], [np.nan, 0.0]])
def test_nll_of_logits_that_are_not_finite_is_no_number(row: list[float]):
    """And no warning: a net that diverges is found by it."""
    assert np.isnan(nll(np.array([[1.0, 0.0], row]), np.array([0, 1])))


def test_calibration_error_by_hand():
    # Bins of 1/5: confidence 0.9 twice (one right), 0.7 once (right), 0.6 once (wrong).
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.7, 0.3], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1])
    counts, confidence, right = reliability(probabilities, labels, bins=5)
    assert counts.tolist() == [0, 0, 1, 1, 2]
    assert confidence == pytest.approx(np.array([0, 0, 0.6, 0.7, 0.9]))
    assert right == pytest.approx(np.array([0, 0, 0, 1, 0.5]))
    expected = (1 * 0.6 + 1 * 0.3 + 2 * 0.4) / 4
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx(expected)


def test_full_confidence_falls_into_the_last_bin():
    counts, _, _ = reliability(np.array([[1.0, 0.0]]), np.array([0]))
    assert counts[-1] == 1


def test_perfectly_calibrated_predictions_have_a_small_error():
    generator = np.random.default_rng(0)
    p = generator.uniform(0.5, 1, 200_000)
    labels = (generator.random(len(p)) > p).astype(int)
    error = expected_calibration_error(np.stack([p, 1 - p], axis=1), labels)
    assert error < 0.005


def test_confusion_matrix_has_a_row_for_each_true_class():
    matrix = confusion_matrix(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_chance_of_gain_by_hand():
    labels = np.zeros(8, int)

    def right(*which):
        scores = np.tile([0.0, 1.0], (8, 1))
        scores[list(which)] = [1.0, 0.0]
        return scores

    assert chance_of_gain(right(0, 1), right(0, 1), labels) == 1.0
    assert chance_of_gain(right(0), right(0, 1, 2, 3), labels) == 1 / 8  # three of three
    assert chance_of_gain(right(0, 7), right(0, 1, 2, 3), labels) == 5 / 16  # three of four
    assert chance_of_gain(right(0, 1, 2), right(0), labels) == 1.0


def test_mean_recall_counts_every_class_alike():
    labels = np.array([0] * 8 + [2] * 2)
    scores = np.eye(3)[[0] * 8 + [2, 1]]
    assert mean_recall(scores, labels) == pytest.approx((1 + 0.5) / 2)


def test_chance_of_balanced_gain_is_the_exact_one_of_even_classes_and_minds_the_rare_of_others():
    def scores(right: list[int], labels: np.ndarray) -> np.ndarray:
        return np.eye(2)[np.where(np.isin(np.arange(len(labels)), right), labels, 1 - labels)]

    def chance(before: list[int], after: list[int], labels: np.ndarray) -> float:
        both = scores(before, labels), scores(after, labels)
        return chance_of_balanced_gain(*both, labels, np.random.default_rng(0))

    even = np.array([0] * 6 + [1] * 6)
    assert chance([0, 1], [0, 1], even) == 1.0
    assert chance([0, 11], [0, 1, 2, 6], even) == pytest.approx(5 / 16, abs=0.015)  # 3 of 4
    # Six of ten rare ones are gained for eight of ninety: fewer right in all, recall is higher.
    uneven = np.array([0] * 90 + [1] * 10)
    before, after = list(range(90)), [*range(8, 90), *range(90, 96)]
    both = scores(before, uneven), scores(after, uneven)
    assert chance_of_gain(*both, uneven) > 0.5
    assert chance(before, after, uneven) == pytest.approx(1 / 64, abs=0.01)
