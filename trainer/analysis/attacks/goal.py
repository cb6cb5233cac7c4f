"""What an attack is after, as a number that is positive when it is reached."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Any label but the true one, or a chosen one. `goal[rows]` is the goal of those images."""

    labels: Tensor  # int64 [n], the true labels
    targets: Tensor | None = None  # int64 [n]: the labels to arrive at; None: anything but labels

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(f"labels must be int64 [n], got {_describe(self.labels)}")
        if self.targets is None:
            return
        if self.targets.dtype != torch.int64 or self.targets.shape != self.labels.shape:
            raise ValueError(
                f"targets must be int64 [n] like labels, got {_describe(self.targets)}"
            )
        if bool((self.targets == self.labels).any()):
            raise ValueError("a target must differ from the label of its image")

    def __getitem__(self, rows: Tensor) -> "Goal":
        targets = None if self.targets is None else self.targets[rows]
        return Goal(labels=self.labels[rows], targets=targets)

    def margin(self, logits: Tensor) -> Tensor:
        """[n], in logits: how far the goal is exceeded (positive) or missed (negative).

        Untargeted: the best other logit less the label's (Carlini & Wagner, arXiv:1608.04644,
        section V, loss f6); targeted: the target's less the best other.
        """
        aim = self.labels if self.targets is None else self.targets
        own = logits.gather(1, aim[:, None]).squeeze(1)
        other = logits.scatter(1, aim[:, None], float("-inf")).amax(dim=1)
        return other - own if self.targets is None else own - other

    def reached(self, logits: Tensor) -> Tensor:
        """bool [n]. A tie is not a success: another runtime may break it the other way."""
        return self.margin(logits) > 0

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """[n], nats, to be ascended: of the label, or minus that of the target."""
        if self.targets is None:
            return functional.cross_entropy(logits, self.labels, reduction="none")
        return -functional.cross_entropy(logits, self.targets, reduction="none")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
