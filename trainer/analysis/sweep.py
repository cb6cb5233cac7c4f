"""One attack at growing sizes, judged where it counts: on the served file."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import Ball, Norm
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.gradient import gradient_descent, pgd_to_the_end
from trainer.analysis.attacks.pursuit import AttackResult
from trainer.analysis.lattice import to_uint8
from trainer.analysis.robustness import size_of
from trainer.analysis.settings import REFERENCE_EPSILON
from trainer.analysis.smallest import smallest_on_lattice
from trainer.analysis.subject import Subject
from trainer.analysis.workspace import Piece

Attack = Callable[[nn.Module, Tensor, Goal, Ball, torch.Generator], AttackResult]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An attack with its settings, as one run of an analysis uses it."""

    name: str
    norm: Norm
    source: str
    setting: str
    attack: Attack
    epsilons: tuple[float, ...]  # pixel units, ascending
    targeted: bool = False
    white_box: bool = True
    one_step: bool = False  # each size stands for itself: one step may overshoot

    @property
    def key(self) -> str:
        return f"{self.name}-{self.norm}" + ("-targeted" if self.targeted else "")


def sweep(
    plan: Plan,
    subject: Subject,
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    generator: torch.Generator,
) -> Piece:
    """Attack `pictures` [n, S, S, 3] at each epsilon; what falls at one size needs no larger one.

    Returns arrays, E sizes, n pictures, V precisions of the served model:
    served, float32 [E, V, n, K]: probabilities for the saved PNG;
    torch, float32 [E, n, K]: PyTorch's own for the same;
    adversarial, uint8 [n, S, S, 3]: the smallest that turned the served fp32, else the last tried;
    turned_at, int64 [n]: index of the epsilon of that one, or E.
    """
    sizes, n = len(plan.epsilons), len(pictures)
    served = np.zeros((sizes, len(subject.precisions), n, len(subject.labels)), np.float32)
    torched = np.zeros((sizes, n, len(subject.labels)), np.float32)
    adversarial = pictures.copy()
    turned_at = np.full(n, sizes, np.int64)
    aim = targets if plan.targeted else None
    model = subject.model if plan.white_box else subject.asked
    for e, epsilon in enumerate(plan.epsilons):
        if e > 0:  # a picture within the smaller ball lies within the larger one
            served[e], torched[e] = served[e - 1], torched[e - 1]
        rows = np.arange(n) if plan.one_step else np.flatnonzero(turned_at == sizes)
        if len(rows) == 0:
            continue
        goal = subject.goal(labels[rows], None if aim is None else aim[rows])
        ball = Ball(norm=plan.norm, epsilon=epsilon)
        images = subject.images(pictures[rows])
        result = plan.attack(model, images, goal, ball, generator)
        found = to_uint8(result.adversarial).cpu().numpy()
        served[e][:, rows], torched[e][rows] = subject.judge(found)
        said = served[e, 0, rows].argmax(axis=1)
        fell = said != labels[rows] if aim is None else said == aim[rows]
        untouched = turned_at[rows] == sizes
        adversarial[rows[untouched]] = found[untouched]
        turned_at[rows[fell & untouched]] = e
    return {"served": served, "torch": torched, "adversarial": adversarial, "turned_at": turned_at}


def smallest(
    norm: Norm,
    subject: Subject,
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    steps: int,
) -> Piece:
    """The smallest perturbation of each of `pictures` [n, S, S, 3] that turns the served model.

    Returns adversarial, uint8 [n, S, S, 3]; served, float32 [V, n, K]; torch, float32 [n, K];
    familiarity, float32 [n], if it is told; size, float64 [n]: its norm in pixel units, infinite
    where the served fp32 is not turned;
    float_size, float64 [n]: the norm before rounding; survived, bool [n]: whether the nearest
    8-bit picture to that fools PyTorch at all.
    """
    images = subject.images(pictures)
    found = smallest_on_lattice(subject.model, images, subject.goal(labels), norm, steps=steps)
    piece = _unbounded(subject, pictures, to_uint8(found.adversarial).cpu().numpy())
    turned = piece["served"][0].argmax(axis=1) != labels
    return piece | {
        "size": np.where(turned, piece[norm], np.inf),
        "float_size": found.float_distances.cpu().numpy().astype(np.float64),
        "survived": found.survived_rounding.cpu().numpy(),
    }


def surest(
    subject: Subject,
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    steps: int,
) -> Piece:
    """What PGD makes of `pictures` [n, S, S, 3] within the reference epsilon if it never stops.

    Returns adversarial, served, torch, familiarity, linf and l2, as `plain_descent` does.
    """
    ball = Ball(norm="linf", epsilon=REFERENCE_EPSILON)
    images, goal = subject.images(pictures), subject.goal(labels)
    found = pgd_to_the_end(subject.model, images, goal, ball, steps=steps)
    return _unbounded(subject, pictures, to_uint8(found).cpu().numpy())


def plain_descent(
    subject: Subject,
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    steps: int,
    step_size: float,
) -> Piece:
    """The lesson's attack towards `targets`, without a ball: see `gradient_descent`.

    Returns adversarial, served, torch and familiarity as `smallest` does, and linf and l2,
    float64 [n].
    """
    goal = subject.goal(labels, targets)
    images = subject.images(pictures)
    result = gradient_descent(subject.model, images, goal, steps=steps, step_size=step_size)
    return _unbounded(subject, pictures, to_uint8(result.adversarial).cpu().numpy())


def _unbounded(
    subject: Subject, pictures: npt.NDArray[np.uint8], adversarial: npt.NDArray[np.uint8]
) -> Piece:
    served, torched, familiarity = subject.judge_and_tell(adversarial)
    sizes = np.array([size_of(p, a) for p, a in zip(pictures, adversarial, strict=True)])
    piece: Piece = {
        "adversarial": adversarial,
        "served": served,
        "torch": torched,
        "linf": sizes[:, 0],
        "l2": sizes[:, 1],
    }
    return piece if familiarity is None else {**piece, "familiarity": familiarity}


def choose_targets(labels: npt.NDArray[np.int64], classes: int, seed: int) -> npt.NDArray[np.int64]:
    """[n] a class to lead each photo to, drawn among those that are not its own."""
    shift = np.random.default_rng(seed).integers(1, classes, len(labels))
    return (labels + shift) % classes
