"""A backbone as a row of stages: which are frozen, and how to run those only once."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

# Hold stages in order; in nets of timm as well.
_CONTAINERS = ("features", "layers", "encoder", "blocks", "stages", "trunk_output")

# What nets raise of an input that they can't take.
_CANT_TAKE = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError)


def stages(backbone: nn.Module) -> list[nn.Module]:
    """The backbone's parts in the order of its layers; those that hold blocks are opened."""
    found: list[nn.Module] = []
    for name, child in backbone.named_children():
        found += stages(child) if name in _CONTAINERS else [child]
    if not found:
        return [backbone]
    return found


def in_no_stage(backbone: nn.Module) -> list[nn.Parameter]:
    """Parameters that lie before the stages: a class token, an embedding of positions."""
    known = {id(p) for part in stages(backbone) for p in part.parameters()}
    return [p for p in backbone.parameters() if id(p) not in known]


def frozen_stages(backbone: nn.Module, thaw: float) -> list[nn.Module]:
    """All but the last share `thaw` of the stages that have weights (at least one, if any)."""
    parts = stages(backbone)
    weighted = [i for i, part in enumerate(parts) if any(True for _ in part.parameters())]
    thawed = min(len(weighted), max(1, round(len(weighted) * thaw))) if thaw > 0 else 0
    first = weighted[-thawed] if thawed else len(parts)
    return parts[:first]


def make_thawing(
    backbone: nn.Module, frozen: Sequence[nn.Module], *, gradual: bool
) -> Callable[[int], list[nn.Module]]:
    """Epoch, from 1 -> the stages frozen in it: `frozen`; and, if `gradual`, those yet to thaw.

    They thaw from the last, one an epoch (Howard and Ruder 2018, arXiv:1801.06146, section 3.3).
    """
    frozen = list(frozen)
    if not gradual:
        return lambda epoch: frozen
    weighted = [part for part in stages(backbone) if any(True for _ in part.parameters())]
    learning = [part for part in weighted if not any(part is other for other in frozen)]
    return lambda epoch: [*frozen, *learning[: max(0, len(learning) - epoch)]]


def split_frozen(
    backbone: nn.Module, frozen: Sequence[nn.Module], size: int
) -> tuple[nn.Module, nn.Module]:
    """(prefix, suffix) with suffix(prefix(x)) = backbone(x): what is frozen, and what is not.

    The suffix shares the weights of the backbone's other stages, so that the prefix need run only
    once for each picture. Where the net can't be cut there, the prefix is the identity.
    """
    parts = stages(backbone)
    whole = (nn.Identity(), backbone)
    if not frozen:
        return whole
    if len(frozen) == len(parts):
        learning = any(p.requires_grad for p in backbone.parameters())
        return whole if learning else (copy.copy(backbone).eval(), nn.Identity())
    sample = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    sample = sample.to(next(backbone.parameters()))
    prefix = _Until(backbone, parts[len(frozen)])
    suffix = _without(backbone, {id(part) for part in frozen})
    try:
        with torch.inference_mode():
            if torch.allclose(suffix(prefix(sample)), backbone(sample), rtol=1e-4, atol=1e-5):
                return prefix, suffix
    except _CANT_TAKE:
        return whole  # they do not come one after another
    return whole


def channels_last(prefix: nn.Module, size: int) -> bool:
    """Whether what comes out of `prefix` is [n, S, S, C], as between the stages of Swin nets.

    A larger picture tells: it has more places, and as many channels. Of a net that takes one size
    alone, the sides tell that are equal, and where all are, what timm's nets say of themselves.
    """
    weight = next(prefix.parameters(), None)
    if weight is None:  # the pictures themselves
        return False
    outputs: list[torch.Size] = []
    try:
        for side in (size, size + 64):
            with torch.inference_mode():
                outputs.append(prefix(weight.new_zeros(1, 3, side, side)).shape[1:])
        grown = [one != other for one, other in zip(*outputs, strict=True)]
        return grown == [True, True, False]
    except _CANT_TAKE:
        shape = tuple(outputs[0])
    if len(shape) != 3 or shape[0] != shape[1]:
        return False
    if shape[1] != shape[2]:
        return True
    return any(getattr(net, "output_fmt", None) == "NHWC" for net in prefix.modules())


class _Reached(Exception):
    """Carries a stage's input out of the forward pass."""


class _Until(nn.Module):
    """The net up to one of its stages: gives that stage's input."""

    def __init__(self, net: nn.Module, stage: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._stage = [stage]  # in a list, so that it is not registered twice

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        def stop(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            raise _Reached(inputs[0])

        handle = self._stage[0].register_forward_pre_hook(stop)
        try:
            self.net(images)
        except _Reached as reached:
            stopped: torch.Tensor = reached.args[0]
            return stopped
        finally:
            handle.remove()
        raise RuntimeError("the stage was not reached")


def _without(module: nn.Module, dropped: set[int]) -> nn.Module:
    """The same module with the same parts, but for those dropped, which become the identity."""
    if id(module) in dropped:
        return nn.Identity()
    children = {name: _without(child, dropped) for name, child in module.named_children()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin
