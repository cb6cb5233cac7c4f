"""A small net that learns from scratch on small pictures within minutes on a CPU."""

from collections.abc import Iterable

import torch
from torch import nn

_WIDTHS = (24, 48, 96, 160)


class Tiny(nn.Module):
    """Four stages of two 3x3 convolutions, each halving the side; about 620,000 weights.

    float32 [n, 3, S, S], normalised -> logits [n, num_classes]. Laid out as torchvision's nets are:
    `features`, then a `classifier` whose last layer is linear.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width in _WIDTHS:
            layers = [*_conv(channels, width, stride=2), *_conv(width, width, stride=1)]
            stages.append(nn.Sequential(*layers))
            channels = width
        self.features = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(channels, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(self.features(images)).flatten(1)
        logits: torch.Tensor = self.classifier(pooled)
        return logits


def _conv(inputs: int, outputs: int, *, stride: int) -> Iterable[nn.Module]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
