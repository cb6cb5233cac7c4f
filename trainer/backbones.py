"""Classifiers made of a pre-trained net: its layers up to the pooled vector, and a new linear head.

Any classification model of torchvision by its name, `timm/<name>`, and `tiny`, our own.
"""

import difflib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn
from torchvision import models
from torchvision.models import get_model, get_model_weights, list_models

from serving.errors import BrokenVersion, InvalidRequest, Unavailable, first_line, listed
from serving.modelspec import Manifest, Normalisation
from serving.repository import Repository
from trainer.stages import in_no_stage
from trainer.timm_nets import PREFIX, make_timm_net, remove_timm_head, timm_input
from trainer.tiny import Tiny
from trainer.trained_input import TrainedInput
from trainer.weights import digest_state, load_state, read_state

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TINY = "tiny"
WEIGHTS = "weights.safetensors"
# Share of the largest logit: other machines and releases round otherwise, by a millionth of it.
_SAME = 1e-3


class Classifier(nn.Module):
    """float32 [n, 3, S, S] in [0, 1] -> logits [n, K]: normalise, backbone, dropout, linear head.

    With `mirror` it sees, in evaluation mode, each picture and its mirror image, and the head gets
    the mean of what the backbone makes of the two (Krizhevsky et al. 2012, "ImageNet
    Classification with Deep Convolutional Neural Networks", section 4.1: reflections).

    Stages that are frozen have no gradient and stay in evaluation mode, whatever `train()` says:
    their batch-norm statistics do not move and their dropout does not drop.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Linear,
        head_name: str,
        normalisation: Normalisation = IMAGENET,
        dropout: nn.Dropout | None = None,
        *,
        mirror: bool = False,
    ) -> None:
        """dropout: the one before the head, which may be one of the backbone's modules; None: a
        new one that drops nothing."""
        super().__init__()
        self.backbone = backbone
        self.dropout = dropout or nn.Dropout(0.0)
        self._within = any(module is dropout for module in backbone.modules())
        self.head = head
        self.head_name = head_name  # where the head was in the backbone
        self.mirror = mirror
        self.frozen: list[nn.Module] = []
        self.normalisation = normalisation
        mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """[0, 1] -> (x - mean) / std by channel, as the backbone's weights were trained."""
        return (images - self.mean) / self.std

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The pooled vector that the head sees: float32 [n, F]."""
        return self.both_ways(self.backbone, self.normalise(images))

    def both_ways(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """[n, F]: what `net` makes of normalised images, with `mirror` of each seen both ways."""
        if not self.mirror or self.training:
            pooled: torch.Tensor = net(images)
            return pooled
        seen: torch.Tensor = net(torch.cat([images, images.flip(3)]))
        return seen.reshape(2, -1, self.head.in_features).mean(0)

    def backbone_digest(self) -> str:
        """Of the backbone's weights; of many it takes a second."""
        return digest_state(self.backbone.state_dict())

    def top(self) -> tuple[nn.Module, ...]:
        """The layers that make logits of `features`."""
        return (self.head,) if self._within else (self.dropout, self.head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.features(images)
        for layer in self.top():  # torch.fx can trace no module that is made here
            values = layer(values)
        return values

    def freeze(self, modules: Sequence[nn.Module]) -> None:
        """Freeze these stages, and nothing else but what lies before all of them; one that holds
        the dropout before the head, as the last of squeezenet, has no weights and stays as it is.
        """
        self.requires_grad_(True)
        self.frozen = [m for m in modules if all(part is not self.dropout for part in m.modules())]
        for module in modules:
            module.requires_grad_(False)
        if any(True for module in modules for _ in module.parameters()):
            for parameter in in_no_stage(self.backbone):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


class Calibrated(nn.Module):
    """float32 [n, 3, S, S] in [0, 1] -> logits [n, K] divided by the temperature."""

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.temperature = temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(images)
        return logits / self.temperature


def build(
    backbone: str,
    labels: int,
    size: int,
    weights: str = "none",
    normalisation: Normalisation | None = None,
    *,
    mirror: bool = False,
) -> Classifier:
    """A classifier with `labels` outputs on `size` x `size` px, its head new, in eval mode.

    weights: "imagenet" (torchvision's or timm's own, downloaded), "none" (initialised at random) or
    the path of a state dict. normalisation: the backbone's own if None. Raises InvalidRequest for a
    name that is unknown, weights that are not there or do not fit, or a size that the net can't
    take; Unavailable where weights can't be downloaded.
    """
    if normalisation is None:
        normalisation = trained_input(backbone).normalisation
    of_timm = backbone.startswith(PREFIX)
    if of_timm:
        net, head_name = make_timm_net(backbone, size, pretrained=weights == "imagenet")
    else:
        net = _net(backbone, weights)
        layers = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        head_name = layers[-1]
    if weights not in ("imagenet", "none"):
        load_state(net, read_state(Path(weights)), ignore=f"{head_name}.", where=weights)
    dropout = None  # timm's nets have none unless they are asked to
    if of_timm:
        remove_timm_head(net, head_name, backbone)
    else:
        _strip_auxiliary(net)
        dropout = _remove_head(net, head_name)
    net.eval()
    try:
        with torch.inference_mode():
            shape = net(torch.zeros(2, 3, size, size)).shape
    except Exception as error:  # a net raises what it likes on a size that it can't take
        raise InvalidRequest(
            f"{backbone} can't take {size} x {size} px: {first_line(error)}"
        ) from error
    head = nn.Linear(shape[1], labels)
    return Classifier(net, head, head_name, normalisation, dropout, mirror=mirror).eval()


def trained_input(backbone: str) -> TrainedInput:
    """What the net's weights were trained on. Raises InvalidRequest for an unknown name."""
    if backbone.startswith(PREFIX):
        return timm_input(backbone)
    if _check_name(backbone) == TINY:
        return TrainedInput(size=64, interpolation="bilinear", normalisation=IMAGENET)
    transforms = get_model_weights(backbone).DEFAULT.transforms()
    return TrainedInput(
        size=int(transforms.crop_size[0]),
        interpolation=transforms.interpolation.value,
        normalisation=Normalisation(mean=tuple(transforms.mean), std=tuple(transforms.std)),
    )


def _check_name(backbone: str) -> str:
    known = [TINY, *list_models(module=models)]
    if backbone not in known:
        near = difflib.get_close_matches(backbone, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise InvalidRequest(f"no backbone {backbone!r}; {hint}; or timm/<name>")
    return backbone


def _net(backbone: str, weights: str) -> nn.Module:
    if _check_name(backbone) == TINY:
        if weights == "imagenet":
            raise InvalidRequest("tiny has no imagenet weights; give --weights none or a file")
        return Tiny()
    chosen = get_model_weights(backbone).DEFAULT if weights == "imagenet" else None
    try:
        with warnings.catch_warnings():  # of inception_v3 and googlenet
            warnings.filterwarnings("ignore", ".*default weight initialization.*", FutureWarning)
            net: nn.Module = get_model(backbone, weights=chosen)
            return net
    except OSError as error:
        raise Unavailable(
            f"the imagenet weights of {backbone} can't be downloaded ({error}); "
            "give --weights FILE with a state dict of torchvision"
        ) from error


def _strip_auxiliary(net: nn.Module) -> None:
    """Make googlenet and inception_v3 plain: no auxiliary outputs, input as their weights want."""
    plain = {"aux1": None, "aux2": None, "AuxLogits": None}
    for name, value in (*plain.items(), ("aux_logits", False), ("transform_input", True)):
        if hasattr(net, name):
            setattr(net, name, value)


def _remove_head(net: nn.Module, name: str) -> nn.Dropout | None:
    """Replace the last layer by the identity, and a ReLU that follows it (in squeezenet) too.
    Returns a lone dropout directly before it; those between vgg's layers are no such.

    It is taken out as well, to act on the features, but for that of squeezenet: there a convolution
    was the head, and global pooling is left after it. As the head is linear, it may come after the
    pooling; the dropout may not, for behind it a share drops far more.
    """
    path, _, child = name.rpartition(".")
    parent = net.get_submodule(path)
    siblings = list(parent.named_children())
    after = [n for n, _ in siblings].index(child)
    drops = [i for i, (_, module) in enumerate(siblings[:after]) if isinstance(module, nn.Dropout)]
    dropout: nn.Dropout | None = None
    if drops == [after - 1]:
        drop, module = siblings[after - 1]
        dropout = cast(nn.Dropout, module)
        if isinstance(siblings[after][1], nn.Linear):
            setattr(parent, drop, nn.Identity())
    for sibling, module in siblings[after:]:
        if sibling == child or isinstance(module, nn.ReLU):
            setattr(parent, sibling, nn.Identity())
    return dropout


def version_state(classifier: Classifier) -> dict[str, torch.Tensor]:
    """The weights under the names that they have in torchvision's, or timm's, net."""
    head = {f"{classifier.head_name}.{k}": v for k, v in classifier.head.state_dict().items()}
    return {**classifier.backbone.state_dict(), **head}


def load_version(repository: Repository, name: str, version: int) -> tuple[Calibrated, Manifest]:
    """A published version in PyTorch, as exported: float32 [n, 3, S, S] in [0, 1] -> logits.

    In eval mode, on the CPU. Raises NotFound, or BrokenVersion if a digest does not match, the
    weights do not fit, or the net has become another one.
    """
    manifest = repository.manifest(name, version)
    data = repository.read_file(manifest, WEIGHTS)
    try:
        classifier = build(
            manifest.backbone,
            len(manifest.labels),
            manifest.preprocessing.size,
            normalisation=manifest.normalisation,
            mirror=bool(manifest.configuration.get("mirror")),
        )
        state = load(data)
        head = f"{classifier.head_name}."
        in_head = {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
        load_state(classifier.backbone, state, ignore=head, where=WEIGHTS)
        load_state(classifier.head, in_head, ignore="-", where=WEIGHTS)
    except (InvalidRequest, SafetensorError) as error:
        raise BrokenVersion(f"{name}/{version} can't be rebuilt: {error}") from error
    net = Calibrated(classifier, manifest.temperature).eval()
    _require_golden(net, repository, manifest)
    return net, manifest


def _require_golden(net: Calibrated, repository: Repository, manifest: Manifest) -> None:
    """Raises BrokenVersion where the weights fit, but a later release of ours, of torchvision or of
    timm computes something else of them."""
    with np.load(io.BytesIO(repository.read_file(manifest, "golden.npz"))) as golden:
        images, expected = torch.from_numpy(golden["images"]), golden["logits"]
    with torch.inference_mode():
        logits = net(images.permute(0, 3, 1, 2).float() / 255).numpy()
    difference, scale = np.abs(logits - expected).max(), np.abs(expected).max()
    if not difference <= _SAME * scale:  # so that nan fails
        packages = ("pawprint", "torch", "torchvision", "timm")
        named = [f"{p} {manifest.software[p]}" for p in packages if p in manifest.software]
        raise BrokenVersion(
            f"{manifest.name}/{manifest.version} can't be rebuilt: here its weights give other "
            f"logits than its ONNX file, by {difference:.2g} of up to {scale:.2g}; it was made "
            f"with {listed(named)}"
        )
