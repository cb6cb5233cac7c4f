"""When an answer may be believed: thresholds hold what they promise, strange pictures are told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from serving.modelspec import Familiarity, Preprocessing
from trainer.analysis.report import threshold_text
from trainer.analysis.selective import (
    auroc,
    lower_bound,
    photos_needed,
    rounded_down,
    threshold_for,
)
from trainer.analysis.strangers import STRANGERS, pictures_below
from trainer.analysis.trust import Answers, attacked_section, most_photos, trust_section
from trainer.errors import InvalidData

SPEC = Preprocessing(size=32, interpolation="bilinear")


def test_the_bound_is_where_so_many_right_ones_become_unlikely():
    for correct, n in ((99, 100), (30, 50), (7, 7)):
        bound = lower_bound(correct, n, 0.01)
        assert binom.sf(correct - 1, n, bound) == pytest.approx(0.01)
    assert lower_bound(0, 5, 0.01) == 0.0


def test_a_threshold_promises_too_much_no_more_often_than_it_may():
    """On nets whose accuracy at each threshold is known: right with probability of the confidence
    to the third."""
    generator = np.random.default_rng(0)
    broken, found = 0, 0
    for _ in range(400):
        confidence = generator.uniform(0.5, 1, 300)
        right = generator.uniform(size=300) < confidence**3
        threshold = threshold_for(confidence, right, 0.7, delta=0.1)
        if threshold is not None:
            found += 1
            t = threshold.value
            truth = (1 - t**4) / 4 / (1 - t)  # the mean of c^3 between t and 1
            broken += truth < 0.7
    assert found > 300
    assert broken <= binom.ppf(0.999, 400, 0.1)


@pytest.mark.parametrize("photos", [80, 400])
def test_a_net_that_is_as_often_wrong_where_it_is_sure_is_seldom_believed(photos: int):
    """Right a little less often than is asked, wherever: each threshold promises too much."""
    generator = np.random.default_rng(photos)
    found = [
        threshold_for(generator.uniform(size=photos), generator.uniform(size=photos) < 0.899, 0.9)
        for _ in range(300)
    ]
    assert 0 < sum(each is not None for each in found) <= binom.ppf(0.999, 300, 0.05)


def test_all_are_answered_where_all_show_it_and_none_where_too_few_do():
    sure = np.linspace(0.5, 1, 200)
    right = np.ones(200, bool)
    found = threshold_for(sure, right, 0.95)
    assert found is not None and found.value == 0.5 and found.answered == found.correct == 200
    few = photos_needed(0.95)
    assert threshold_for(sure[:few], right[:few], 0.95) is not None
    assert threshold_for(sure[: few - 1], right[: few - 1], 0.95) is None


def test_unsure_ones_that_are_wrong_are_not_answered():
    sure = np.linspace(0.5, 1, 400)
    found = threshold_for(sure, sure > 0.7, 0.95)
    assert found is not None
    assert found.value > 0.69 and found.correct / found.answered >= 0.95
    assert found.answered == np.sum(sure >= found.value)


def sure_and_right(wrong_from: int, n: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The surest are right, and half of those from the place `wrong_from` on."""
    place = np.arange(n)
    return 1 - (place + 0.5) / (10 * n), (place < wrong_from) | (place % 2 == 0)


@pytest.mark.parametrize("wrong_from", [100, 400, 600, 900])
def test_as_many_are_answered_as_the_bound_shows(wrong_from: int):
    sure, right = sure_and_right(wrong_from)
    found = threshold_for(sure, right, 0.95)
    assert found is not None and wrong_from <= found.answered < wrong_from * 1.15
    assert lower_bound(found.correct, found.answered, 0.025) >= 0.95


def test_an_error_among_the_surest_is_outweighed_by_what_follows():
    sure, right = sure_and_right(900)
    right[3] = False  # too much for the 72 that show 95 % without an error
    found = threshold_for(sure, right, 0.95)
    assert found is not None and found.answered > 850


def test_the_first_threshold_that_fails_is_the_last_to_be_tried():
    """Else each would have to share its chance of an error with the others."""
    sure, right = sure_and_right(1000)
    right[150:300], right[505:560] = False, False
    assert lower_bound(int(right.sum()), 1000, 0.025) > 0.75  # all of them would show it
    found = threshold_for(sure, right, 0.75)
    assert found is not None and 150 <= found.answered < 300


def test_what_is_shown_is_shown_of_the_threshold_as_it_is_told():
    """Of a net that is sure of all: right where 1 - p is below 1e-5, on nine of ten above."""
    generator = np.random.default_rng(0)
    lacks = 10 ** -generator.uniform(1, 7, 4000)
    right = (lacks < 1e-5) | (generator.uniform(size=4000) < 0.9)
    found = threshold_for((1 - lacks).astype(np.float32), right, 0.99)
    assert found is not None
    told = float(threshold_text(found.value))
    truth = np.where(lacks < 1e-5, 1, 0.9)[1 - lacks >= told].mean()
    assert truth >= 0.99
    assert found.answered == np.sum((1 - lacks).astype(np.float32) >= told)


def test_a_threshold_is_told_in_two_digits_of_what_it_lacks():
    some = (0.0, 0.0041, 0.8234, 0.5, 0.9999642, float(np.float32(1 - 6e-8)), 1.0)
    assert [threshold_text(rounded_down(p)) for p in some] == [
        *("0", "0", "0.82", "0.5", "0.999964", "0.99999994", "1")
    ]
    for p in np.random.default_rng(0).uniform(0, 1, 1000):
        assert p - 0.1 * (1 - p) <= rounded_down(p) <= p


def test_equally_sure_ones_are_answered_together():
    found = threshold_for(np.full(300, 0.8), np.ones(300, bool), 0.9)
    assert found is not None and found.answered == 300


def test_auroc_is_the_share_of_pairs():
    generator = np.random.default_rng(1)
    inside, outside = generator.integers(0, 6, 40) / 5, generator.integers(0, 6, 30) / 5
    pairs = inside[:, None] - outside[None]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert auroc(inside, outside) == pytest.approx(expected)
    assert auroc(np.array([0.9, 0.8]), np.array([0.1])) == 1.0


def test_a_section_says_how_many_strangers_pass_where_most_photos_do():
    def scores(values: np.ndarray) -> np.ndarray:
        return np.stack([values, 1 - values], axis=1)

    sure = np.linspace(0.6, 0.99, 100)
    answers = Answers(served={"fp32": scores(sure)}, labels=np.zeros(100, np.int64))
    section = trust_section(answers, {"noise": scores(np.linspace(0.55, 0.65, 11))})
    assert section["confidence"] == 0.95
    (noise,) = section["strangers"]
    assert np.mean(sure >= section["usual"]["threshold"]) >= 0.95
    assert noise["answered"] == np.mean(
        np.linspace(0.55, 0.65, 11) >= section["usual"]["threshold"]
    )
    assert noise["auroc"] > 0.95 and noise["pictures"] == 11
    assert section["curves"]["wrong"] is None
    assert section["curves"]["right"][0] == 1.0 and section["curves"]["right"][-1] == 0.0
    shown = [row["threshold"] for row in section["thresholds"]]
    assert shown[0] == pytest.approx(0.6) and shown[2] is None
    first = section["thresholds"][0]
    assert (first["answered"], first["measured"]) == (1.0, 1.0)
    assert section["thresholds"][2]["needed"] == np.ceil(np.log(0.025) / np.log(0.99))


def test_a_section_says_how_many_strangers_are_unfamiliar():
    sure = np.tile([0.9, 0.1], (200, 1))
    told = Familiarity(photos=99, threshold=0.01, unfamiliar={})
    familiarity = np.linspace(0.01, 1, 200, dtype=np.float32)
    answers = Answers(served={"fp32": sure}, labels=np.zeros(200, int), familiarity=familiarity)
    strange = np.float32([0.01, 0.01, 0.01, 0.5])
    section = trust_section(answers, {"noise": sure[:4]}, told, {"noise": strange})
    assert section["familiarity"] == {"photos": 99, "threshold": 0.01, "unfamiliar": 1 / 200}
    (noise,) = section["strangers"]
    assert noise["unfamiliar"] == 0.75
    assert noise["familiarity_auroc"] == pytest.approx(auroc(familiarity, strange))
    section = trust_section(replace(answers, familiarity=None), {"noise": sure[:4]})
    assert section["familiarity"] is section["strangers"][0]["unfamiliar"] is None


def test_images_that_were_turned_are_asked_for_their_familiarity():
    told = Familiarity(photos=99, threshold=0.01, unfamiliar={})
    served = np.array([[[0.2, 0.8], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]])  # one is not turned
    piece = {"served": served, "familiarity": np.float32([0.01, 0.01, 0.5, 0.02])}
    none = {"served": served[:, [1, 1, 1, 1]], "familiarity": piece["familiarity"]}
    rows = attacked_section(told, {"pgd": piece, "descent": none}, np.zeros(4, np.int64))
    assert rows == [
        {"attack": "pgd", "images": 3, "unfamiliar": pytest.approx(1 / 3)},
        {"attack": "descent", "images": 0, "unfamiliar": None},
    ]


def test_each_served_file_has_thresholds_of_its_own():
    labels = np.zeros(400, np.int64)
    right = np.tile([0.9, 0.1], (400, 1))
    unsure = right.copy()
    unsure[:100] = [0.4, 0.6]  # and wrong
    section = trust_section(Answers(served={"fp32": right, "int8": unsure}, labels=labels), {})
    rows = {(row["precision"], row["accuracy"]): row for row in section["thresholds"]}
    assert list(rows) == [(p, a) for p in ("fp32", "int8") for a in (0.9, 0.95, 0.99)]
    assert rows["fp32", 0.95]["answered"] == 1.0 and rows["int8", 0.95]["answered"] == 0.75
    assert rows["int8", 0.95]["threshold"] == 0.9 and section["photos"] == 400


def test_as_many_photos_are_looked_at_as_memory_holds():
    assert most_photos(224) == 2000
    assert 900 * 600**2 * 3 < most_photos(600) * 600**2 * 3 <= 2**30


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_are_pictures_drawn_by_the_seed(kind: str):
    photo = np.random.default_rng(0).integers(0, 256, (33, 33, 3), dtype=np.uint8)
    one, same = (STRANGERS[kind](photo, np.random.default_rng(5)) for _ in range(2))
    other = STRANGERS[kind](photo, np.random.default_rng(6))
    assert one.shape == photo.shape and one.dtype == np.uint8
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert one.std() > 5


def test_the_texture_of_a_photo_has_its_mean_colour_and_spectrum():
    photo = np.random.default_rng(0).integers(96, 160, (64, 64, 3), dtype=np.uint8)
    made = STRANGERS["texture"](photo, np.random.default_rng(1)).astype(float)
    assert made.mean(axis=(0, 1)) == pytest.approx(photo.mean(axis=(0, 1)), abs=0.5)
    power, expected = (np.abs(np.fft.fft2(x, axes=(0, 1))) for x in (made, photo.astype(float)))
    assert np.corrcoef(power.ravel(), expected.ravel())[0, 1] > 0.99
    assert abs(np.corrcoef(made.ravel(), photo.ravel())[0, 1]) < 0.2


def test_pictures_below_a_folder(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for number in range(5):
        colour = (40 * number, 0, 0)
        Image.new("RGB", (50, 40), colour).save(tmp_path / "deep" / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    read = pictures_below(str(tmp_path), SPEC, limit=None, seed=0, workers=2)
    assert read.shape == (5, 32, 32, 3)
    assert sorted(read[:, 0, 0, 0].tolist()) == [0, 40, 80, 120, 160]
    some = pictures_below(str(tmp_path / "deep"), SPEC, limit=2, seed=0, workers=2)
    assert len(some) == 2


def test_a_folder_without_pictures_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InvalidData, match="no picture that can be used"):
        pictures_below(str(tmp_path), SPEC, limit=None, seed=0, workers=1)
    for place in (str(tmp_path / "none"), ""):
        with pytest.raises(InvalidData, match="no folder"):
            pictures_below(place, SPEC, limit=None, seed=0, workers=1)
