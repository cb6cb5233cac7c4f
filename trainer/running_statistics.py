"""The statistics by which batch norms judge, while they learn."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.backbones import build, trained_input

_MOMENTUM = 0.1  # PyTorch's own, and that of most nets


def keep_up(net: nn.Module) -> None:
    """Let running statistics follow within tens of steps. In place.

    Some nets were made for trainings of 100,000 steps: MobileNetV3 moves its statistics by 0.01 of
    the way in each, MNASNet by 0.0003. After a few hundred steps they would still be made of what
    they began with, and the net right by chance on val though it has learnt.
    """
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, _MOMENTUM)


def has_batch_norm(backbone: str) -> bool:
    """Whether the net of this name has any. Raises as `build` does."""
    with torch.device("meta"):  # no weights are drawn
        net = build(backbone, 2, trained_input(backbone).size)
    return any(isinstance(module, _BatchNorm) for module in net.modules())
