"""One step of the optimiser on one batch: precision, accumulation, clipping, all processes."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from trainer.batches import most_parts, parts_of
from trainer.compiler import uncompilable
from trainer.distributed import World
from trainer.errors import FailedCheck
from trainer.losses import Loss

T = TypeVar("T")

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """Computes a batch in `parts`, and in twice as many from when the GPU's memory overflows.

    A batch of too few photos for so many is computed in fewer. Batch norm sees a part at a time.
    `scaler`: of the loss, so that gradients fit into fp16; disabled in other precisions.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        amp: str,
        parts: int,
        clip: float,
        loss: Loss,
        compile: bool,
        world: World,
    ) -> None:
        self._net, self._optimizer = model, optimizer
        self._compile = compile
        self._kind, self._dtype = device.type, AUTOCAST[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self._clip = clip
        self._loss, self._world = loss, world
        self.parts = parts
        self._learning: list[int] | None = None
        self.follow()

    def follow(self) -> None:
        """Once other parts of the net learn than did."""
        learning = [id(p) for p in self._net.parameters() if p.requires_grad]
        if learning == self._learning:
            return
        self._learning = learning
        self._model = self._world.wrap(self._net)
        self._forward: Callable[[Tensor], Tensor] = self._model
        if self._compile:  # with dropout's draws as they are otherwise
            self._forward = torch.compile(self._model, options={"fallback_random": True})

    def share(self, batch: Sequence[T]) -> list[T]:
        """This process's, of each part: so batch norm sees in a part what it would in one process,
        however many there are."""
        parts = parts_of(batch, min(self.parts, most_parts(len(batch), self._world.size)))
        return [item for part in parts for item in self._world.share(part)]

    def __call__(
        self, inputs: Tensor, goals: Tensor, labels: Tensor, taught: Tensor | None, total: int
    ) -> tuple[float, int]:
        """Sum of losses, and photos right, of all processes; `total`: photos in the whole batch,
        of which these are the `share`.

        goals: labels int64 [n], or probabilities [n, K]; taught: a teacher's logits [n, K]. Where
        the loss is no number, no weight has changed, but batch norm's running statistics have.
        Raises FailedCheck if the GPU's memory is too small for any part, or the net can't be
        compiled.
        """
        loss, right = self._gradients(inputs, goals, labels, taught, total)
        loss, right = self._world.sum(loss, right)
        if not math.isfinite(loss):
            return loss, int(right)
        self.scaler.unscale_(self._optimizer)
        if self._clip:
            trained = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self._clip)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        return loss, int(right)

    def _gradients(
        self, inputs: Tensor, goals: Tensor, labels: Tensor, taught: Tensor | None, total: int
    ) -> tuple[float, float]:
        most = most_parts(total, self._world.size)
        while True:
            parts = min(self.parts, most)
            try:
                return self._add_up(inputs, goals, labels, taught, total, parts)
            except torch.OutOfMemoryError as error:
                # What one of several processes alone would do in more parts, the others wait for.
                if self._world.size > 1 or parts == most:
                    raise FailedCheck(
                        f"the GPU has too little memory for {len(inputs)} photos in {parts} parts; "
                        "try a smaller --batch-size, a larger --accumulate, or a smaller --size or "
                        "backbone"
                    ) from error
            except TorchDynamoException as error:
                raise FailedCheck(uncompilable(error)) from error
            # Not within `except`: until its end the error holds all that the pass had made.
            self.parts = min(2 * parts, most)
            torch.cuda.empty_cache()

    def _add_up(
        self,
        inputs: Tensor,
        goals: Tensor,
        labels: Tensor,
        taught: Tensor | None,
        total: int,
        parts: int,
    ) -> tuple[float, float]:
        """Gradients of the mean loss over the `total` photos of all processes."""
        self._optimizer.zero_grad(set_to_none=True)
        loss_sum = right = 0.0
        sizes = [len(self._world.share(part)) for part in parts_of(range(total), parts)]
        pieces = [torch.split(tensor, sizes) for tensor in (inputs, goals, labels)]
        said = [None] * parts if taught is None else torch.split(taught, sizes)
        for i, (part, goal, label, soft) in enumerate(zip(*pieces, said, strict=True)):
            with self._world.unsynced(self._model) if i + 1 < parts else nullcontext():
                # Not around the backward pass, whose operators take the types of the forward's.
                with torch.autocast(self._kind, self._dtype, enabled=self._dtype is not None):
                    logits = self._forward(part).float()
                    loss = self._loss(logits, goal, soft)
                share = self._world.size / total  # gradients are averaged over the processes
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
            right += float((logits.argmax(dim=1) == label).sum())
        return loss_sum, right
