import numpy as np
import pytest

from trainer.split import hold_out, spread, stratified_folds, units_of

LABELS = np.repeat(np.arange(4), [2, 7, 20, 100])


@pytest.mark.parametrize("fraction", [0.01, 0.18, 0.5])
def test_hold_out_takes_its_share_of_each_class_at_least_one_and_never_all(fraction: float):
    held = hold_out(LABELS, fraction, np.random.default_rng(0))
    assert len(set(held.tolist())) == len(held)
    for label, size in enumerate([2, 7, 20, 100]):
        taken = int(np.sum(LABELS[held] == label))
        assert 1 <= taken < size
        assert taken == 1 or abs(taken - size * fraction) <= 0.5


def test_hold_out_leaves_as_many_as_the_next_one_needs():
    labels = np.repeat(np.arange(2), [3, 20])
    held = hold_out(labels, 0.5, np.random.default_rng(0), leave=2)
    assert np.bincount(labels[held]).tolist() == [1, 10]
    units = np.repeat(np.arange(3), [1, 1, 50])  # either of the small ones is far from half
    held = hold_out(np.zeros_like(units), 0.5, np.random.default_rng(0), 2, units)
    assert len(held) == 1


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


def test_units_are_of_one_group_and_class_and_no_more_than_a_third_of_it():
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    groups = np.array([4, 4, 5, 5, 6, 7, 4, 8, 8])
    units = units_of(labels, groups, 3).tolist()
    assert units[0] == units[1] and units[2] == units[3]
    assert len(set(units)) == 7  # 4 of the other class is another; 8 is taken apart


@pytest.mark.parametrize("leave", [1, 2])
@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.5, 0.99])
def test_units_are_held_out_whole_and_each_split_gets_one(fraction: float, leave: int):
    for seed in range(50):
        generator = np.random.default_rng(seed)
        labels = np.repeat(np.arange(3), [3, 12, 60])
        units = units_of(labels, generator.integers(0, 9, len(labels)), 3)
        held = hold_out(labels, fraction, generator, leave, units)
        left = np.setdiff1d(np.arange(len(labels)), held)
        assert not set(units[held]) & set(units[left])
        for label in range(3):
            assert np.sum(labels[held] == label) >= 1
            assert len(set(units[left][labels[left] == label])) >= leave


@pytest.mark.parametrize(
    "sizes", [(333, 333, 333, 1), (500, 250, 600, 1), (250, 250, 250, 250, 1, 1), (20,) * 5 + (3,)]
)
def test_a_few_photos_alone_are_not_all_that_is_held_out(sizes: tuple[int, ...]):
    """Of a class of three films and a photo, that photo was the test."""
    units = np.repeat(np.arange(len(sizes)), sizes)
    held = hold_out(np.zeros_like(units), 0.15, np.random.default_rng(0), 2, units)
    assert 0.075 <= len(held) / len(units) <= 0.34


def test_units_of_one_change_nothing():
    alone = np.arange(len(LABELS))
    for fraction, leave in ((0.15, 1), (0.5, 2)):
        labels = LABELS[2:]
        held = [
            hold_out(labels, fraction, np.random.default_rng(0), leave, units).tolist()
            for units in (None, units_of(labels, alone[2:], 3))
        ]
        assert held[0] == held[1]
    folds = [
        stratified_folds(LABELS, 5, np.random.default_rng(0), units).tolist()
        for units in (None, alone)
    ]
    assert folds[0] == folds[1]


def test_units_stay_in_one_fold_and_folds_are_even():
    units = np.arange(len(LABELS)) // 2
    folds = stratified_folds(LABELS, 5, np.random.default_rng(0), units)
    for unit in np.unique(units):
        assert len(set(zip(folds[units == unit], LABELS[units == unit], strict=True))) <= 2
        for label in np.unique(LABELS[units == unit]):
            assert len(set(folds[(units == unit) & (LABELS == label)])) == 1
    sizes = np.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= 4


def test_a_sample_is_spread_over_all_and_has_nothing_twice():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 16) == [0, 1, 2]
