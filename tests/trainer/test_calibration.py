import numpy as np
import pytest

from trainer.calibration import fit_temperature
from trainer.metrics import nll, softmax


def drawn(temperature: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (n, 4))
    chosen = softmax(logits / temperature).cumsum(axis=1) > generator.random((n, 1))
    return logits, chosen.argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_it_lowers_the_loss_and_keeps_the_order():
    logits, labels = drawn(2.5)
    found = fit_temperature(logits, labels)
    assert nll(logits / found, labels) < nll(logits, labels)


def test_all_right_and_all_wrong_stay_finite():
    logits = np.tile([4.0, 0.0, 0.0], (50, 1))
    sure = fit_temperature(logits, np.zeros(50, dtype=int))
    # Confidence (n + 1) / (n + 2), and half of the rest for each other: 4 / T = log(2 * 51).
    assert sure == pytest.approx(4 / np.log(102), rel=1e-3)
    assert fit_temperature(logits, np.ones(50, dtype=int)) == pytest.approx(20, rel=1e-2)
