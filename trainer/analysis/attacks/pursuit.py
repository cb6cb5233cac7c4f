"""The images that still stand while an attack runs. Those that fall leave the batch at once."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.analysis.attacks.ball import Ball
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.differentiable import logits_of
from trainer.analysis.lattice import repair, round_in_ball

_REPAIR_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """Pictures on the 8-bit lattice within the ball; success was judged on exactly these."""

    adversarial: Tensor  # float32 [n, 3, S, S]; where the attack failed: its last attempt
    success: Tensor  # bool [n]
    evaluations: Tensor  # int64 [n]: times the model saw the image (with a gradient or without)


class Pursuit:
    """Owns the standing rows of one attack. All tensors of the attack follow `settle`'s answer."""

    def __init__(self, model: nn.Module, images: Tensor, goal: Goal, ball: Ball) -> None:
        if len(goal.labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(goal.labels)} labels")
        images = images.contiguous(memory_format=torch.channels_last)
        self.model = model
        self.originals, self.goal, self.ball = images, goal, ball  # of the standing rows
        self.rows = torch.arange(len(images), device=images.device)
        self._adversarial = images.clone()
        self._success = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._evaluations = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def count(self) -> None:
        """The attack has shown each standing image to the model once."""
        self._evaluations[self.rows] += 1

    def settle(self, iterates: Tensor, candidates: Tensor) -> Tensor:
        """Drop the candidates that reach the goal once rounded; the others go on as they were.

        iterates: the standing rows, within the ball. candidates: bool [standing]. Returns
        bool [standing]: who is still there.
        """
        tried = candidates.nonzero().squeeze(1)
        if len(tried) == 0:
            return torch.ones_like(candidates)
        rounded = round_in_ball(iterates[tried], self.originals[tried], self.ball[tried])
        reached = self.goal[tried].reached(logits_of(self.model, rounded))
        return self._judged(tried, rounded, reached, 1)

    def conclude(self, iterates: Tensor) -> None:
        """The end of one run: judge the last iterates, and repair what rounding alone undid."""
        if len(self.rows) == 0:
            return
        reached = self.goal.reached(logits_of(self.model, iterates))
        self.count()
        stands = self.settle(iterates, reached)
        iterates, undone = iterates[stands], reached[stands]
        rounded = round_in_ball(iterates, self.originals, self.ball)
        self._adversarial[self.rows] = rounded
        if not bool(undone.any()):
            return
        tried = undone.nonzero().squeeze(1)
        repaired, fools = repair(
            self.model,
            rounded[tried],
            self.originals[tried],
            self.goal[tried],
            self.ball[tried],
            steps=_REPAIR_STEPS,
        )
        self._judged(tried, repaired, fools, _REPAIR_STEPS + 1)  # evaluations at most

    def result(self) -> AttackResult:
        return AttackResult(
            adversarial=self._adversarial, success=self._success, evaluations=self._evaluations
        )

    def _judged(self, tried: Tensor, pictures: Tensor, reached: Tensor, evaluations: int) -> Tensor:
        """Note what became of the standing rows that were tried, and let go of those that reach the
        goal. Returns bool [standing]: who is still there."""
        rows = self.rows[tried]
        self._evaluations[rows] += evaluations
        self._adversarial[rows] = pictures
        self._success[rows[reached]] = True
        stands = torch.ones_like(self.rows, dtype=torch.bool)
        stands[tried[reached]] = False
        if not bool(stands.all()):
            self.originals, self.goal = self.originals[stands], self.goal[stands]
            self.ball, self.rows = self.ball[stands], self.rows[stands]
        return stands
