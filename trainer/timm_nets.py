"""Nets of timm as backbones: `timm/<name>`, or `timm/<name>.<tag>` for particular weights.

https://huggingface.co/docs/timm; needs the extra `timm`.
"""

import difflib
from contextlib import nullcontext
from types import ModuleType
from typing import Any

from torch import nn

from serving.errors import InvalidRequest, Unavailable, first_line, lacks, listed
from serving.modelspec import INTERPOLATIONS, Normalisation
from trainer.hub import reachable_hub
from trainer.trained_input import TrainedInput

PREFIX = "timm/"


def timm_input(backbone: str) -> TrainedInput:
    """What the net's weights were trained on. Raises InvalidRequest for an unknown name."""
    timm, name = _find(backbone)
    settings = timm.models.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    interpolation = settings.interpolation
    return TrainedInput(
        size=settings.input_size[-1],
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        normalisation=Normalisation(mean=tuple(settings.mean), std=tuple(settings.std)),
    )


def make_timm_net(backbone: str, size: int, *, pretrained: bool) -> tuple[nn.Module, str]:
    """The net for `size` x `size` px, and the name of its head, which is a linear layer.

    Raises InvalidRequest: the name is unknown, the net can't take this size, or it has no linear
    head. Unavailable: its weights can't be downloaded.
    """
    timm, name = _find(backbone)
    settings = timm.models.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if settings and settings.fixed_input_size and settings.input_size[-1] != size:
        options["img_size"] = size
    problem = None
    try:
        hub = settings.hf_hub_id if pretrained and settings else None
        with reachable_hub(hub) if hub else nullcontext() as problem:
            # Some nets come without a head, or with one of other outputs; all can be given this.
            net = timm.create_model(name, pretrained=pretrained, num_classes=1000, **options)
    except OSError as error:
        reason = first_line(problem or error)
        raise Unavailable(
            f"the imagenet weights of {backbone} can't be downloaded ({reason}); "
            "give --weights FILE with a state dict of timm"
        ) from error
    except Exception as error:  # a net raises what it likes on a size that it can't take
        raise InvalidRequest(
            f"{backbone} can't be made for {size} x {size} px: {first_line(error)}"
        ) from error
    return net, _head_name(net, backbone)


def remove_timm_head(net: nn.Module, head_name: str, backbone: str) -> None:
    """Leave of it what gives the pooled vector. Raises InvalidRequest where more than that goes."""
    whole = set(net.state_dict())
    net.reset_classifier(0)  # type: ignore[operator]
    lost = whole - set(net.state_dict())
    if lost != {f"{head_name}.weight", f"{head_name}.bias"}:
        raise InvalidRequest(
            f"{backbone} can't be used: its head is more than a linear layer ({sorted(lost)})"
        )


def _find(backbone: str) -> tuple[ModuleType, str]:
    """timm, and the net's name in it."""
    try:
        import timm
    except ImportError as error:
        raise InvalidRequest(lacks(f"the backbone {backbone}", "timm", error, "timm")) from error
    name = backbone.removeprefix(PREFIX)
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        names = " or ".join(PREFIX + other for other in near)
        hint = f"did you mean {names}?" if near else "timm.list_models() has them all"
        raise InvalidRequest(f"no backbone {backbone!r}; {hint}")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tagged:
        there = listed([PREFIX + tag for tag in tagged])
        raise InvalidRequest(f"no weights {tag!r} of {PREFIX}{architecture}; there are {there}")
    return timm, name


def _head_name(net: nn.Module, backbone: str) -> str:
    head = net.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        kind = "several layers" if isinstance(head, tuple) else f"a {type(head).__name__}"
        raise InvalidRequest(f"{backbone} can't be used: its head is {kind}, not a linear layer")
    names: list[str] = [name for name, module in net.named_modules() if module is head]
    return names[0]
