"""The statistics by which batch norms judge, while they learn."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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
