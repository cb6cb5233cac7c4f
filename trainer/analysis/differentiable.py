"""A classifier made ready for many gradients with respect to its input, and that gradient."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError


def prepare(model: nn.Module) -> nn.Module:
    """A frozen copy of `model` in eval mode, batch norms folded into convolutions, channels last.

    The same function up to float32 rounding, at a fraction of the time: a folded batch norm costs
    no pass over memory, forward or backward. A model that torch.fx can't trace is left unfolded.
    The modules inside may be rearranged: hooks belong on the model as given, not on this copy.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    try:
        frozen = fuse(frozen)
    except TraceError:  # control flow that depends on data
        pass
    return frozen.eval().requires_grad_(False).to(memory_format=torch.channels_last)


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
