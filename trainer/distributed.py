"""The processes of one training: each learns from its share of every batch, as if they were one."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import Store
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from serving.errors import InvalidRequest, PawprintError, first_line, listed
from trainer.errors import FailedCheck
from trainer.meeting import meet
from trainer.ranks import gpu_of, place_of

T = TypeVar("T")

_POLL_S = 0.2
_LINGER_S = 10.0
# NCCL's own ten minutes are soon over where one machine still reads the photos that another has in
# its cache. A process that has died is not waited for: torchrun ends all, or its peers notice.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among all; every method is one that all processes call together."""

    rank: int = 0
    size: int = 1
    store: Store | None = None  # that of several
    of_job: Store | None = None  # and that of all their attempts, where torchrun keeps one

    @property
    def leads(self) -> bool:
        """It alone writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of `items`: in order, disjoint, and together all, none twice."""
        bounds = np.linspace(0, len(items), self.size + 1).round().astype(int)
        return list(items[bounds[self.rank] : bounds[self.rank + 1]])

    def sum(self, *values: float) -> list[float]:
        """The sum of each over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
        return [float(value) for value in total]

    def join(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes, in the order of their ranks: undoes `share`."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows)
        return np.concatenate(parts)

    def of_leader(self, make: Callable[[], T]) -> T:
        """What `make`, which the leader alone calls, gives; or raises, as a PawprintError."""
        if self.size == 1:
            return make()
        said: list[Any] = [None, None]
        if self.leads:
            try:
                said[0] = make()
            except PawprintError as error:
                said[1] = error
        dist.broadcast_object_list(said, src=0)
        if said[1] is not None:
            raise said[1]
        made: T = said[0]
        return made

    def after_leader(self, what: str) -> None:
        """Return in the others once the leader is here, however long that takes: it publishes
        alone, and a collective would give up. Raises FailedCheck if it has gone."""
        if self.store is None:
            return
        key = f"pawprint/after/{what}"
        if self.leads:
            self.store.set(key, "")
            # The store may be this process's: it stays until the others have seen that.
            seen = [f"{key}/{rank}" for rank in range(1, self.size)]
            until = time.monotonic() + _LINGER_S
            while not self.store.check(seen) and time.monotonic() < until:
                time.sleep(_POLL_S)
            return
        try:
            while not self.store.check([key]):
                time.sleep(_POLL_S)
            self.store.set(f"{key}/{self.rank}", "")
        except RuntimeError as error:
            raise FailedCheck("the first process has ended: see what it said") from error

    def tell_later(self, what: str, word: str) -> None:
        """The leader to that of a later attempt, if torchrun starts all again."""
        if self.of_job is not None:
            self.of_job.set(f"pawprint/told/{what}", word)

    def told(self, what: str) -> str | None:
        """By the leader of an earlier attempt, to the leader; None: nothing."""
        key = f"pawprint/told/{what}"
        if self.of_job is None or not self.of_job.check([key]):
            return None
        return self.of_job.get(key).decode()

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with gradients averaged, and batch norm over the batches of all processes.

        Of what learns at this moment: to be done anew where that changes. Raises InvalidRequest
        where it has a batch norm that can't be.
        """
        if self.size == 1:
            return model
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                _sync(module)
        return DistributedDataParallel(model)

    def unwrap(self, model: nn.Module) -> None:
        """Undo in place what `wrap` made of its batch norms, once it has learnt: what folds batch
        norms into convolutions knows them by their class."""
        for module in model.modules():
            if isinstance(module, SyncedBatchNorm2d):
                module.__class__ = module.alone  # type: ignore[assignment]

    def unsynced(self, model: nn.Module) -> Any:
        """Within it, gradients add up in this process alone."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


ALONE = World()


class _Sum(torch.autograd.Function):
    """Over all processes, each of whose losses the sum takes part in."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gradient,) = gradients
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _summed(values: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _Sum.apply(values)
    return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes' batches, on the CPU too.

    torch's SyncBatchNorm is for GPUs alone. Statistics are in float32, whatever the inputs are.
    """

    alone: type[nn.Module] = nn.BatchNorm2d  # its class in one process

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(inputs)
        return self._over_all(inputs.float()).to(inputs.dtype)

    def _over_all(self, inputs: torch.Tensor) -> torch.Tensor:
        axes, channels = (0, 2, 3), inputs.shape[1]
        count = inputs.new_full((1,), inputs.numel() / channels)
        total = _summed(torch.cat([inputs.sum(axes), count]))
        number = total[-1].detach()
        mean = total[:-1] / number
        # About the mean: of a channel that hardly varies, the difference of squares has no digits.
        centred = inputs - mean[:, None, None]
        variance = _summed(centred.square().sum(axes)) / number
        with torch.no_grad():
            if self.track_running_stats and self.running_mean is not None:
                assert self.num_batches_tracked is not None and self.running_var is not None
                self.num_batches_tracked += 1
                step = self.momentum
                if step is None:
                    step = 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, step)
                self.running_var.lerp_(variance * (number / (number - 1)), step)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        normal = centred * scale[:, None, None]
        return normal + self.bias[:, None, None] if self.affine else normal


class SyncedBatchNormAct2d(SyncedBatchNorm2d):
    """timm's BatchNormAct2d, which drops and activates what it has normalised."""

    drop: nn.Module
    act: nn.Module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.act(self.drop(super().forward(inputs)))
        return outputs


def _sync(module: _BatchNorm) -> None:
    """Make it a synced one in place, with its weights and under its name."""
    kind = type(module)
    if kind is nn.BatchNorm2d:
        module.__class__ = SyncedBatchNorm2d
    elif kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm."):
        module.__class__ = SyncedBatchNormAct2d
        module.alone = kind  # type: ignore[assignment]
    elif kind not in (SyncedBatchNorm2d, SyncedBatchNormAct2d):
        raise InvalidRequest(
            f"the net has a {kind.__name__}, whose statistics can't be those of several "
            "processes; train it in one, or take another backbone"
        )


@contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started, or a scheduler that sets RANK, WORLD_SIZE, MASTER_ADDR
    and MASTER_PORT as it does; this one alone without them. Raises InvalidRequest, FailedCheck,
    Unavailable."""
    if place_of(os.environ) is None:
        yield World()
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(gpu_of(os.environ, torch.cuda.device_count()))
    of_job, store, rank, size = meet()
    world = World(rank, size, store, of_job)
    try:
        require_same_devices(world, store, "GPU" if gpus else "CPU")
        dist.init_process_group(
            "nccl" if gpus else "gloo",
            timeout=_PATIENCE,
            store=store,
            rank=rank,
            world_size=size,
        )
        # NCCL connects at the first collective, and waits no longer for it than for the meeting.
        world.sum(0)
        yield world
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        why = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
        raise FailedCheck(
            f"another process has ended or can't be reached: see what it said ({why})"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def require_same_devices(world: World, store: Store, device: str) -> None:
    """Raises InvalidRequest, in every process, unless all have a GPU or none has: those with one
    have no way to the others, and wait for them in vain."""
    store.set(f"pawprint/device/{world.rank}", device)
    found = [store.get(f"pawprint/device/{rank}").decode() for rank in range(world.size)]
    without = [rank for rank, each in enumerate(found) if each == "CPU"]
    if without and len(without) < world.size:
        world.after_leader("devices")  # the store may be that process's
        raise InvalidRequest(
            f"process {listed(without)} has no GPU that torch can use, others have one; see to its "
            "driver, or hide them from all (CUDA_VISIBLE_DEVICES=)"
        )
