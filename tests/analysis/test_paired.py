"""Whether one version is more often right than another: what photos show of it."""

import numpy as np
import pytest
from scipy.stats import binom

from trainer.analysis.paired import in_a_sentence, paired


def verdicts(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, gained, lost, neither)
    one, other = np.array([True, False, True, False]), np.array([True, True, False, False])
    return np.repeat(one, counts), np.repeat(other, counts)


def test_photos_that_both_have_right_or_wrong_say_nothing_of_the_change():
    few, many = (paired(*verdicts(both, 9, 1, 5)) for both in (10, 1000))
    assert few["p_value"] == many["p_value"] == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert (many["gained"], many["lost"], many["correct"]) == (9, 1, [1001, 1009])
    assert many["change"] == pytest.approx(8 / 1015)


def test_either_way_round_it_is_the_same_change():
    one, other = verdicts(80, 12, 5, 3)
    there, back = paired(one, other), paired(other, one)
    assert there["p_value"] == back["p_value"]
    assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]))
    assert there["low"] < there["change"] < there["high"]


def test_without_a_difference_it_is_the_photos_that_say_how_far_that_goes():
    widths = []
    for n in (1, 10, 100, 1000):
        p = paired(*verdicts(n, 0, 0, 0))
        assert p["change"] == 0 and p["p_value"] == 1 and p["low"] == -p["high"]
        widths.append(p["high"])
    assert widths == sorted(widths, reverse=True) and widths[0] <= 1 and widths[-1] < 0.003


@pytest.mark.parametrize(("gain", "loss"), [(0.02, 0.02), (0.06, 0.01), (0.0, 0.05), (0.3, 0.1)])
@pytest.mark.parametrize("n", [100, 600])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int, gain: float, loss: float):
    generator, held = np.random.default_rng(n), 0
    for _ in range(400):
        gained, lost, same = generator.multinomial(n, [gain, loss, 1 - gain - loss])
        p = paired(*verdicts(same, gained, lost, 0))
        held += p["low"] <= gain - loss <= p["high"]
    assert held >= binom.ppf(0.001, 400, 0.94)


def test_the_sentence_tells_a_difference_from_chance():
    assert "points (+2" in in_a_sentence(paired(*verdicts(900, 60, 20, 20)))
    assert in_a_sentence(paired(*verdicts(900, 60, 20, 20))).endswith("more than chance does")
    assert in_a_sentence(paired(*verdicts(90, 3, 1, 6))).endswith("chance alone may do as much")
