"""What adversarial fine-tuning trains against: `pgd-3@4/255`. Knows no torch."""

import re
from dataclasses import dataclass

from serving.errors import InvalidRequest
from trainer.analysis.settings import read_epsilon

_DEFENCE = re.compile(r"(fast|pgd-(?P<steps>[0-9]{1,3}))@(?P<epsilon>[0-9./]+)")


@dataclass(frozen=True, kw_only=True)
class Defence:
    """An L-infinity adversary: its steps and its size at the end of the schedule."""

    steps: int  # 1 is the fast variant
    epsilon: float  # pixel units of [0, 1]


def parse_defence(text: str) -> Defence:
    """`pgd-3@4/255`: three steps of PGD; `fast@4/255`: one step. Raises InvalidRequest."""
    match = _DEFENCE.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        defence = Defence(steps=int(match["steps"] or 1), epsilon=read_epsilon(match["epsilon"]))
        if defence.steps < 1 or not 0 < defence.epsilon < 1:
            raise ValueError
    except ValueError as error:
        raise InvalidRequest(
            "adversarial must be pgd-STEPS@EPSILON or fast@EPSILON, with an epsilon between 0 and "
            f"1, such as pgd-3@4/255; got {text!r}"
        ) from error
    return defence
