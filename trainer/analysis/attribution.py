"""Where a classifier looks and what its layers see. Call these with the model as built.

(`folding.folded` rearranges modules, so that hooks on them may never be called.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.analysis.objectives import class_logit


def spatial_layers(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the layers whose output is a feature map with spatial extent, as they run.

    The last one is where Grad-CAM looks; layers that run twice are named where they ran last.
    """
    names: dict[str, None] = {}

    def note(name: str, output: object) -> None:
        if _as_map(output) is not None:
            names.pop(name, None)
            names[name] = None

    with _watching(model, [name for name, _ in model.named_modules() if name], note):
        with torch.inference_mode():
            model(images[:1])
    return list(names)


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Gradient-weighted class activation maps (Selvaraju et al. 2017, arXiv:1610.02391, section 3).

    Of the last feature map with spatial extent. images: float32 [n, 3, S, S] in [0, 1]; classes:
    int64 [n]. Returns float32 [n, S, S] in [0, 1], each map over its own maximum; zero everywhere
    if nothing speaks for the class.
    """
    candidates = spatial_layers(model, images)
    if not candidates:
        raise ValueError("the model has no layer with a spatial feature map")
    layer = candidates[-1]
    maps: dict[str, Tensor] = {}
    with _watching(model, [layer], maps.__setitem__), torch.enable_grad():
        score = class_logit(model(images.detach().requires_grad_(True)), classes).sum()
        (gradient,) = torch.autograd.grad(score, maps[layer])
    slope, seen = _as_map(gradient), _as_map(maps[layer].detach())
    assert slope is not None and seen is not None
    weights = slope.mean(dim=(2, 3), keepdim=True)  # equation 1
    heat = (weights * seen).sum(dim=1, keepdim=True)  # equation 2, and below
    if len(heat) == 2 * len(images):  # of a net that sees mirror images too
        as_it_is, mirrored = heat.chunk(2)
        heat = as_it_is + mirrored.flip(3)
    heat = heat.relu()
    heat = functional.interpolate(
        heat, size=images.shape[2:], mode="bilinear", align_corners=False
    ).squeeze(1)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def activation_maps(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """layer -> float32 [n, C, h, w], what it puts out for the images; some of spatial_layers."""
    maps: dict[str, Tensor] = {}

    def note(layer: str, output: Tensor) -> None:
        if (seen := _as_map(output)) is not None:
            maps[layer] = seen.clone()  # the next layer may work in place

    with _watching(model, layers, note), torch.no_grad():
        model(images)
    return {layer: maps[layer] for layer in layers}


def _as_map(output: object) -> Tensor | None:
    """The feature map [n, C, h, w] that a layer has put out, which is square as the pictures are:
    Swin's are [n, h, w, C]. None if it is none, as attention's [n, heads, tokens, width]."""
    if not isinstance(output, Tensor) or output.ndim != 4 or min(output.shape[2:]) == 1:
        return None
    _, one, two, three = output.shape
    if two == three:
        return output
    return output.permute(0, 3, 1, 2) if one == two else None


@contextmanager
def _watching(
    model: nn.Module, layers: Sequence[str], note: Callable[[str, Any], None]
) -> Iterator[None]:
    """Calls note(layer, output) after each of the layers; the hooks go in any case."""
    modules = dict(model.named_modules())
    unknown = [layer for layer in layers if layer not in modules]
    if unknown:
        raise ValueError(f"no such layer: {', '.join(unknown)}")
    hooks = [
        modules[layer].register_forward_hook(
            lambda module, inputs, output, layer=layer: note(layer, output)
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
