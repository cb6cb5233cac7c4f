"""What turns gradients into steps, and how far each stage goes."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.backbones import Classifier
from trainer.stages import stages

_MOMENTUM = 0.9

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.0),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=_MOMENTUM, nesterov=True),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.0),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.0, momentum=_MOMENTUM),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.0),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.0),
}


def parameter_groups(
    classifier: Classifier, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trained parameters from the head back, each stage at `layer_decay` of the next.

    "scale" of a group is its share of the learning rate (discriminative rates: Howard and Ruder
    2018, arXiv:1801.06146, section 3.2). Kernels decay; biases and the scales of normalisation
    layers do not (He et al. 2019, arXiv:1812.01187, section 3.1), nor do tables of biases, scales
    of layers and embeddings of positions, which may have more dimensions than one.
    """
    rows: list[nn.Module] = [classifier.head, *reversed(stages(classifier.backbone))]
    rows.append(classifier)  # what is in no stage, such as position embeddings, is first in the net
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    seen: set[int] = set()
    scale = 1.0
    for row in rows:
        new = [(n, p) for n, p in row.named_parameters() if p.requires_grad and id(p) not in seen]
        for name, parameter in new:
            kernel = parameter.dim() > 1 and name.endswith("weight")  # in_proj_weight is one too
            groups[scale, weight_decay if kernel else 0.0].append(parameter)
        seen.update(id(parameter) for _, parameter in new)
        if new:
            scale *= layer_decay
    return [
        {"params": parameters, "weight_decay": decay, "scale": share}
        for (share, decay), parameters in groups.items()
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the head learn at `rate`, and every stage at its own share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
