"""Measurements that only the sanity section needs: is the evaluation itself sound?"""

import numpy as np
import numpy.typing as npt
import torch

from trainer.analysis.attacks.ball import Ball
from trainer.analysis.attacks.gradient import pgd
from trainer.analysis.differentiable import input_gradient
from trainer.analysis.lattice import to_uint8
from trainer.analysis.settings import REFERENCE_EPSILON, Budget
from trainer.analysis.subject import Subject

PHOTOS = 16
HUGE_EPSILON = 128 / 255
_MORE = 4  # times the steps


def probe(
    subject: Subject,
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    budget: Budget,
    generator: torch.Generator,
) -> dict[str, float]:
    """pictures: uint8 [n, S, S, 3], photos that the version has right; labels: int64 [n]."""
    model = subject.model
    images = subject.images(pictures)
    goal = subject.goal(labels)

    def left(epsilon: float, steps: int, restarts: int) -> float:
        """Share that PGD leaves standing, as served."""
        ball = Ball(norm="linf", epsilon=epsilon)
        result = pgd(model, images, goal, ball, steps=steps, restarts=restarts, generator=generator)
        return float((_said(subject, to_uint8(result.adversarial).cpu().numpy()) == labels).mean())

    signs = (2 * torch.randint(0, 2, images.shape, generator=generator) - 1).to(images)
    noisy = to_uint8((images + REFERENCE_EPSILON * signs).clamp(0, 1)).cpu().numpy()
    _, _, margin = input_gradient(model, images, goal.margin)
    _, _, entropy = input_gradient(model, images, goal.cross_entropy)
    return {
        "photos": float(len(pictures)),
        "huge_epsilon": HUGE_EPSILON,
        "huge_accuracy": left(HUGE_EPSILON, _MORE * budget.pgd_steps, budget.pgd_restarts + 2),
        "usual_accuracy": left(REFERENCE_EPSILON, budget.pgd_steps, budget.pgd_restarts),
        "more_accuracy": left(REFERENCE_EPSILON, _MORE * budget.pgd_steps, budget.pgd_restarts + 2),
        "more_factor": float(_MORE),
        "noise_accuracy": float((_said(subject, noisy) == labels).mean()),
        "zero_margin_gradients": _useless(margin),
        "zero_entropy_gradients": _useless(entropy),
    }


def _said(subject: Subject, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    result: npt.NDArray[np.int64] = subject.verdict(pictures).argmax(axis=1)
    return result


def _useless(gradient: torch.Tensor) -> float:
    """The share of images whose gradient is zero everywhere or not a number."""
    size = gradient.abs().amax(dim=(1, 2, 3))
    return float((~(size > 0)).float().mean())
