"""How thorough an analysis is: photos, sizes of perturbation, steps."""

from dataclasses import dataclass

IDEAL_GOAL = 0.99  # probability that an ideal image is to reach
MOST_DRAWN = 100  # ideal images, unless more are asked for: those of 1,000 classes take hours
REFERENCE_EPSILON = 4 / 255  # the headline; an undefended net has nothing left here


def k255(epsilon: float) -> str:
    """In words, as it can be given; epsilon in pixel units of [0, 1]."""
    return f"{255 * epsilon:.10g}/255"


def read_epsilon(text: str) -> float:
    """Of `4/255`, or `0.0157`; and of `0.5/255`, for k255 says such. Raises ValueError."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1.0)
    except ZeroDivisionError as error:
        raise ValueError(text) from error


@dataclass(frozen=True, kw_only=True)
class Budget:
    photos: int | None  # at most so many, spread over the classes; None: all
    linf: tuple[float, ...]  # pixel units of [0, 1], ascending
    l2: tuple[float, ...]
    pgd_steps: int
    pgd_restarts: int
    apgd_steps: int
    apgd_targets: int
    square_queries: int
    lesson_steps: int
    minimal_steps: int
    ideal_coarse_steps: int  # at half the size
    ideal_steps: int
    lesson_ideal_steps: int  # of the ablation
    triptychs: int


LINF = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
L2 = (0.25, 0.5, 1.0, 2.0)

BUDGETS = {
    "quick": Budget(
        photos=24, linf=LINF, l2=L2[1:3], pgd_steps=10, pgd_restarts=1, apgd_steps=10,
        apgd_targets=2, square_queries=100, lesson_steps=20, minimal_steps=20,
        ideal_coarse_steps=48, ideal_steps=64,
        lesson_ideal_steps=200, triptychs=6,
    ),
    "standard": Budget(
        photos=128, linf=LINF, l2=L2, pgd_steps=20, pgd_restarts=2, apgd_steps=30,
        apgd_targets=3, square_queries=500, lesson_steps=50, minimal_steps=40,
        ideal_coarse_steps=96, ideal_steps=128,
        lesson_ideal_steps=1000, triptychs=12,
    ),
    "thorough": Budget(
        photos=None, linf=LINF, l2=L2, pgd_steps=50, pgd_restarts=5, apgd_steps=100,
        apgd_targets=9, square_queries=5000, lesson_steps=100, minimal_steps=100,
        ideal_coarse_steps=192,
        ideal_steps=320,
        lesson_ideal_steps=1000, triptychs=24,
    ),
}  # fmt: skip
