"""Labels that are probably wrong, and what is left without them."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.photo_data import data_of
from trainer.data import PhotoData
from trainer.label_errors import (
    PROBABLY,
    fit_label_noise,
    label_errors_csv,
    probably_wrong,
    with_label_errors,
    with_test_label_errors,
)
from trainer.lettering import short_file, short_label
from trainer.metrics import Floats, Ints, softmax
from trainer.pictures import Photo


def drawn(photos: int, classes: int, share: float, temperature: float) -> tuple[Floats, Ints, Ints]:
    """Logits [n, K] that are `temperature` times too large, the classes that they speak of, and the
    labels, of which `share` was drawn at random."""
    generator = np.random.default_rng([photos, classes])
    logits = 3 * generator.normal(size=(photos, classes))
    chances = softmax(logits).cumsum(axis=1)
    truth = (chances < generator.random((photos, 1))).sum(axis=1).clip(max=classes - 1)
    noise = generator.integers(0, classes, photos)
    labels = np.where(generator.random(photos) < share, noise, truth)
    return logits * temperature, truth, labels


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_the_noise_that_labels_were_drawn_with_is_found(
    classes: int, share: float, temperature: float
):
    logits, _, labels = drawn(8000, classes, share, temperature)
    found = fit_label_noise(logits, labels)
    assert found.shares.mean() == pytest.approx(share, abs=0.025)
    assert found.temperature == pytest.approx(temperature, rel=0.15)


@pytest.mark.parametrize("classes", [2, 10])
def test_photos_of_one_class_among_those_of_others_are_noise_of_that_class(classes: int):
    logits, truth, labels = drawn(8000, classes, 0.3, 2.0)
    labels = np.where(truth == 0, labels, truth)
    found = fit_label_noise(logits, labels)
    expected = [0.3, *[0.0] * (classes - 1)]
    assert found.shares == pytest.approx(np.array(expected), abs=0.05)
    assert found.temperature == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("lean", [1.0, 4.0])
def test_a_net_that_leans_to_one_class_accuses_no_label(lean: float):
    logits, _, labels = drawn(2000, 2, 0.0, 1.0)
    logits = logits + [0, lean]
    assert (logits.argmax(axis=1) != labels).sum() > 200
    assert (probably_wrong(logits, labels) > PROBABLY).sum() <= 4


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("classes", [2, 10])
def test_a_probability_says_how_often_such_labels_are_wrong(classes: int, share: float):
    """Those that were drawn, and are right by chance, are not wrong."""
    logits, truth, labels = drawn(40_000, classes, share, 3.0)
    wrong = probably_wrong(logits, labels)
    differ = labels != truth
    for low, high in ((0.5, 0.65), (0.65, 0.8), (0.8, 0.95), (0.95, 1.0)):
        some = (wrong > low) & (wrong <= high)
        assert some.sum() > 50
        error = 3 * 0.5 / np.sqrt(some.sum()) + 0.02  # of the count, and of the fit
        assert differ[some].mean() == pytest.approx(wrong[some].mean(), abs=error)
    assert np.all(wrong[logits.argmax(axis=1) == labels] == 0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 8.0])
def test_a_net_that_errs_and_is_too_sure_of_it_accuses_no_label(temperature: float):
    logits, _, labels = drawn(2000, 5, 0.0, temperature)
    assert (logits.argmax(axis=1) != labels).sum() > 200
    assert (probably_wrong(logits, labels) > PROBABLY).sum() <= 4


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("photos", [60, 158, 500])
def test_a_net_as_sure_of_its_mistakes_as_of_the_rest_accuses_no_label(photos: int, spread: float):
    """Of two classes it has 64 % right: as if most labels had been drawn, or it were too sure."""
    generator = np.random.default_rng(photos)
    labels = generator.integers(0, 2, photos)
    said = np.where(generator.random(photos) < 0.36, 1 - labels, labels)
    logits = np.zeros((photos, 2))
    logits[np.arange(photos), said] = np.exp(spread * generator.normal(size=photos))
    assert not np.any(probably_wrong(logits, labels))


def test_logits_that_are_no_numbers_accuse_none():
    logits, _, labels = drawn(50, 3, 0.2, 1.0)
    logits[7] = np.nan
    assert not np.any(probably_wrong(logits, labels))


def numbered(labels: dict[str, list[int]]) -> PhotoData:
    """Photos 0, 1 ... of train and then of val, with these labels; one more in test."""
    splits: dict[str, tuple[Photo, ...]] = {}
    number = 0
    for split, members in ({"train": [], "val": [], "test": [0]} | labels).items():
        splits[split] = tuple(
            Photo(path=Path("no"), file=f"{n}.jpg", label=label, digest=f"{n:064}")
            for n, label in enumerate(members, number)
        )
        number += len(members)
    return data_of(("cat, tabby", "dog"), splits)


def sure_of(truth: Ints) -> Floats:
    """Logits of a net that is right, and as good as certain of it."""
    return np.where(truth[:, None] == np.arange(2), 8.0, -8.0) + 0.01 * truth[:, None]


def two_wrong() -> tuple[Ints, Ints, PhotoData]:
    """What 60 photos show; their labels, of which 7 and 50 are wrong; 40 of them in train."""
    truth = np.array([0, 1] * 30)
    labels = truth.copy()
    labels[[7, 50]] ^= 1
    data = numbered({"train": labels[:40].tolist(), "val": labels[40:].tolist()})
    return truth, labels, data


def test_wrong_labels_of_train_and_val_are_named_and_stay_unless_dropped():
    truth, _, data = two_wrong()
    found = with_label_errors(data, sure_of(truth), drop=False)
    named = {(e.photo.file, e.split, e.looks_like, e.dropped) for e in found.label_errors}
    assert named == {("7.jpg", "train", 1, False), ("50.jpg", "val", 0, False)}
    assert all(0.9 < error.probability <= 1 for error in found.label_errors)
    assert found.splits == data.splits
    dropped = with_label_errors(data, sure_of(truth), drop=True)
    assert [error.dropped for error in dropped.label_errors] == [True, True]
    files = [photo.file for photo in dropped.learnt_from]
    assert files == [f"{n}.jpg" for n in range(60) if n not in (7, 50)]
    assert dropped.splits["test"] == data.splits["test"]
    lines = label_errors_csv(dropped).splitlines()
    assert lines[0] == "path,split,label,looks_like,probability,dropped"
    assert {line.rsplit(",", 2)[0] for line in lines[1:]} == {
        '7.jpg,train,"cat, tabby",dog',
        '50.jpg,val,dog,"cat, tabby"',
    }
    assert all(line.endswith(",yes") for line in lines[1:])


def test_a_carriage_return_in_a_name_does_not_end_its_row():
    truth, _, data = two_wrong()
    found = with_label_errors(data, sure_of(truth), drop=False)
    odd = replace(found.label_errors[0].photo, file="icon\r.jpg")
    errors = (replace(found.label_errors[0], photo=odd), *found.label_errors[1:])
    text = label_errors_csv(replace(found, label_errors=errors))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["path"] for row in rows] == [odd.file, errors[1].photo.file]
    assert {row["dropped"] for row in rows} == {"no"}


def test_wrong_labels_of_test_come_beside_the_others_and_always_stay():
    truth, labels, data = two_wrong()
    of_train = with_label_errors(data, sure_of(truth), drop=True)
    test = numbered({"test": labels.tolist()}).splits["test"]
    both = with_test_label_errors(
        replace(of_train, splits={**of_train.splits, "test": test}), 0.4 * sure_of(truth)
    )
    named = [(error.photo.file, error.split, error.dropped) for error in both.label_errors]
    assert {*named} == {
        *(("7.jpg", "train", True), ("50.jpg", "val", True)),
        *(("7.jpg", "test", False), ("50.jpg", "test", False)),
    }
    chances = [error.probability for error in both.label_errors]
    assert chances == sorted(chances, reverse=True)
    assert both.splits["test"] == test and both.splits["train"] == of_train.splits["train"]


def test_a_class_whose_photos_mostly_look_like_another_keeps_them():
    """Then it is not understood; and no split may lose a class."""
    truth = np.array([0] * 60 + [1] * 10)
    labels = truth.copy()
    labels[[57, 58, 59]] = 1  # all dogs that train has but one, and one of four in val
    train, val = [*range(50), 57, 58, 60], [*range(50, 57), 59, *range(61, 70)]
    order = np.array(train + val)
    data = numbered({"train": labels[train].tolist(), "val": labels[val].tolist()})
    found = with_label_errors(data, sure_of(truth)[order], drop=True)
    named = {e.photo.file: e.dropped for e in found.label_errors}
    assert named == {f"{order.tolist().index(n)}.jpg": n == 59 for n in (57, 58, 59)}
    assert len(found.learnt_from) == len(data.learnt_from) - 1


def test_a_long_name_of_a_file_keeps_its_number_in_the_plot():
    assert short_file("american_bulldog_of_the_neighbours_150.jpg").endswith("_150.jpg")
    assert len(short_file("american_bulldog_of_the_neighbours_150.jpg")) == len(
        short_label("american_bulldog_of_the_neighbours_150.jpg")
    )
    assert short_file("short.jpg") == "short.jpg"
