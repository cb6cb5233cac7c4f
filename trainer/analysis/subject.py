"""The version under analysis: its PyTorch net for gradients, its ONNX files for the verdict."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from serving.errors import BrokenVersion
from serving.modelspec import Familiarity, Manifest, outputs_of
from serving.preprocess import preprocess
from serving.repository import Repository
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.differentiable import logits_of
from trainer.analysis.lattice import from_uint8
from trainer.analysis.pictures import png_bytes
from trainer.analysis.served_net import ServedNet
from trainer.backbones import load_version
from trainer.folding import folded
from trainer.onnx_runner import OnnxRunner

_BATCH = 16

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Subject:
    manifest: Manifest
    net: nn.Module  # as trained, for hooks: float [n, 3, S, S] in [0, 1] -> logits [n, K]
    model: nn.Module  # the same function made ready for many gradients
    asked: nn.Module  # and for many answers without one
    runners: dict[str, OnnxRunner]  # by precision, fp32 first
    familiarity: Familiarity | None  # None: the version can't tell it

    @property
    def labels(self) -> tuple[str, ...]:
        return self.manifest.labels

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(self.runners)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def images(self, pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
        """uint8 [n, S, S, 3] as the net takes it: float32 [n, 3, S, S] in [0, 1], on its device."""
        return from_uint8(torch.from_numpy(pictures).to(self.device))

    def goal(
        self, labels: npt.NDArray[np.int64], targets: npt.NDArray[np.int64] | None = None
    ) -> Goal:
        """What an attack on these photos is after, on the net's device."""
        return Goal(
            labels=torch.from_numpy(labels).to(self.device),
            targets=None if targets is None else torch.from_numpy(targets).to(self.device),
        )

    def judge(self, pictures: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Probabilities for uint8 [n, S, S, 3]: (as served, [V, n, K]; by PyTorch, [n, K]).

        As served: saved as PNG, decoded by serving's preprocessing, run through each ONNX file.
        Pictures of another size are judged as the preprocessing makes them, by PyTorch too.
        """
        served, torched, _ = self.judge_and_tell(pictures)
        return served, torched

    def judge_and_tell(
        self, pictures: npt.NDArray[np.uint8]
    ) -> tuple[Floats, Floats, Floats | None]:
        """`judge`, and how familiar they are to the served fp32, [n], if it tells that."""
        decoded = self._as_decoded(pictures)
        outputs = [self.outputs(precision, decoded) for precision in self.runners]
        served = np.stack([probabilities for probabilities, *_ in outputs])
        parts = np.split(decoded, range(_BATCH, len(decoded), _BATCH))  # memory for any number
        logits = torch.cat([logits_of(self.model, self.images(part)) for part in parts])
        torched = self._numbers("PyTorch", torch.softmax(logits, dim=1).cpu().numpy())
        return served, torched, _familiarity(outputs[0])

    def verdict(self, pictures: npt.NDArray[np.uint8]) -> Floats:
        """[n, K]: `judge` as far as it is of the served fp32, which alone is asked."""
        return self.told(pictures)[0]

    def told(self, pictures: npt.NDArray[np.uint8]) -> tuple[Floats, Floats | None]:
        """(`verdict`, and how familiar they are, [n])."""
        outputs = self.outputs("fp32", self._as_decoded(pictures))
        return outputs[0], _familiarity(outputs)

    def outputs(self, precision: str, decoded: npt.NDArray[np.uint8]) -> tuple[Floats, ...]:
        """Of a served file, for pictures [n, S, S, 3] as the preprocessing makes them.

        Raises BrokenVersion where it answers what is no number: the first label of such an answer
        would be the first class, and a photo of that class would count as right.
        """
        outputs = self.runners[precision].run(decoded)
        self._numbers(f"the {precision} file", outputs[0])
        return outputs

    def _numbers(self, what: str, probabilities: Floats) -> Floats:
        if lost := int(np.sum(~np.isfinite(probabilities).all(axis=1))):
            raise BrokenVersion(
                f"{self.manifest.name}/{self.manifest.version}: {what} answers {lost} of "
                f"{len(probabilities)} pictures with what is no number; do not serve it"
            )
        return probabilities

    def _as_decoded(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        spec = self.manifest.preprocessing
        return np.stack([preprocess(png_bytes(each, packed=False), spec) for each in pictures])


def _familiarity(outputs: tuple[Floats, ...]) -> Floats | None:
    """[n], of what a file gives."""
    _, _, *rest = outputs
    return rest[0][:, 0] if rest else None


def load_subject(repository: Repository, name: str, version: int, device: torch.device) -> Subject:
    """Raises NotFound, BrokenVersion (a file is missing or does not match its digest)."""
    net, manifest = load_version(repository, name, version)
    net.eval().requires_grad_(False).to(device)
    order = ["fp32", *sorted(set(manifest.variants) - {"fp32"})]

    def read(precision: str) -> bytes:
        return repository.read_file(manifest, manifest.variants[precision].file)

    model, familiarity = folded(net), repository.familiarity(manifest)
    names = outputs_of(familiarity is not None)
    return Subject(
        manifest=manifest,
        net=net,
        model=model,
        asked=ServedNet(lambda: read("fp32")) if device.type == "cpu" else model,
        runners={p: OnnxRunner(read(p), names, precision=p) for p in order},
        familiarity=familiarity,
    )
