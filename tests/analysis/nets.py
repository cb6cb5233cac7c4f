"""Small nets whose behaviour is known, for the tests of the analysis."""

import torch
from torch import nn


class Linear(nn.Module):
    """logits = weight @ pixels + bias; weight: [K, 3 * S * S]."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def random_linear(classes, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 3 * side * side, generator=generator)
    bias = -weight.sum(dim=1) / 2 + 0.1 * torch.randn(classes, generator=generator)
    return Linear(weight, bias)


def convnet(classes, seed=0, sharpness=1):
    """Convolutions with batch norm and a head, random but fixed, in eval mode.

    sharpness: factor of the logits.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, classes),
        )
        net[1].running_mean.normal_(0, 0.1)
        net[1].running_var.uniform_(0.05, 0.2)
        net[-1].weight.data.mul_(20 * sharpness)
    return net.eval().requires_grad_(False)


class Posterized(nn.Module):
    """A net behind pixels rounded to few levels: its gradient is zero everywhere."""

    def __init__(self, net, levels):
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, images):
        return self.net((images * self.levels).round() / self.levels)


def pictures(n, side, seed=0):
    """float32 [n, 3, S, S] on the 8-bit lattice, smooth enough to look like photos."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth * 255).round() / 255


def predicted(model, images):
    with torch.no_grad():
        return model(images).argmax(dim=1)


def levels(images):
    return (images * 255).round().to(torch.int64)
