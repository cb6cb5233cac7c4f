"""What a classifier answers, and its gradient with respect to the input."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits float32 [n, K] without a graph; the result can't take part in a later gradient."""
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits


def input_gradient(
    model: nn.Module, images: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient with respect to the images of `objective`, a function of logits [n, K] to [n].

    Returns (logits [n, K], values [n], gradients shaped as images), detached. The images do not
    touch each other, so the gradient of the sum is the gradient of each.
    """
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        logits = model(leaf)
        values = objective(logits)
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
    return logits.detach(), values.detach(), gradients
