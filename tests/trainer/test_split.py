import numpy as np
import pytest

from trainer.split import hold_out, stratified_folds

LABELS = np.repeat(np.arange(4), [2, 7, 20, 100])


@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.5])
def test_hold_out_takes_its_share_of_each_class_at_least_one_and_never_all(fraction: float):
    held = hold_out(LABELS, fraction, np.random.default_rng(0))
    assert len(set(held.tolist())) == len(held)
    for label, size in enumerate([2, 7, 20, 100]):
        taken = int(np.sum(LABELS[held] == label))
        assert 1 <= taken < size
        assert abs(taken - size * fraction) <= 1


def test_hold_out_leaves_as_many_as_the_next_one_needs():
    labels = np.repeat(np.arange(2), [3, 20])
    held = hold_out(labels, 0.5, np.random.default_rng(0), leave=2)
    assert np.bincount(labels[held]).tolist() == [1, 10]


def test_hold_out_depends_on_the_seed_alone():
    first, same = (hold_out(LABELS, 0.15, np.random.default_rng(3)) for _ in range(2))
    other = hold_out(LABELS, 0.15, np.random.default_rng(4))
    assert first.tolist() == same.tolist() != other.tolist()


def test_folds_are_even_in_size_and_in_each_class():
    folds = stratified_folds(LABELS, 5, np.random.default_rng(0))
    sizes = np.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for label in range(4):
        per_fold = np.bincount(folds[LABELS == label], minlength=5)
        assert per_fold.max() - per_fold.min() <= 1
