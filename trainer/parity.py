"""The exported file against PyTorch on the same photos: published is only what agrees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serving.modelspec import Parity
from trainer.errors import FailedCheck
from trainer.export import Served
from trainer.onnx_runner import OnnxRunner

BATCH_SIZES = (1, 2, 7)
TOLERANCE = 1e-5  # of the logit scale: float32 has 1.2e-7, and a net adds up thousands of terms


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    photo: int
    margin: float  # between PyTorch's two highest logits


def measure_parity(
    served: Served,
    runner: OnnxRunner,
    images: npt.NDArray[np.uint8],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> tuple[Parity, list[Disagreement]]:
    """Compare logits of `images` uint8 [n, S, S, 3] at each batch size with PyTorch's.

    PyTorch computes them once: the batch that a photo comes in must change neither's answer.
    Also returns the photos whose first label differs at any of them.
    """
    expected = _torch_logits(served, images, max(batch_sizes))
    scale, worst = float(np.abs(expected).max()), 0.0
    differ: dict[int, Disagreement] = {}
    for size in batch_sizes:
        got = runner.run(images, size)[1]
        worst = float(np.maximum(worst, np.abs(got - expected).max()))  # max() would drop a nan
        for i in np.flatnonzero(got.argmax(axis=1) != expected.argmax(axis=1)).tolist():
            second, first = np.sort(expected[i])[-2:]
            differ[i] = Disagreement(photo=i, margin=float(first - second))
    parity = Parity(
        photos=len(images),
        batch_sizes=tuple(batch_sizes),
        logit_scale=scale,
        max_logit_error=worst,
        top1_agreement=1 - len(differ) / len(images),
    )
    return parity, list(differ.values())


def require_parity(
    parity: Parity,
    differ: Sequence[Disagreement],
    names: Sequence[str],
    terms: Callable[[], float],
) -> None:
    """Raises FailedCheck with the figures if logits or first labels differ; `names` of photos.

    terms: gives the `term_scale` of these photos, if it is asked for.
    """
    scale = parity.logit_scale
    if not parity.max_logit_error <= TOLERANCE * scale:  # nan fails too
        scale = max(scale, terms())
    limit = TOLERANCE * scale
    if not parity.max_logit_error <= limit:
        raise FailedCheck(
            f"the exported file differs from PyTorch by {parity.max_logit_error:.3g} in logits; "
            f"the limit is {limit:.3g} ({TOLERANCE:g} of {scale:.3g}): not published"
        )
    if differ:
        named = ", ".join(f"{names[d.photo]} (margin {d.margin:.3g})" for d in differ[:5])
        raise FailedCheck(
            f"the exported file gives {len(differ)} of {parity.photos} photos another label than "
            f"PyTorch: {named}: not published"
        )


def term_scale(served: Served, images: npt.NDArray[np.uint8]) -> float:
    """The largest sum of the sizes of all that a logit is added up of, over uint8 [n, S, S, 3].

    They are rounded, and where a net has found nothing to go by they cancel out: its logits are
    far smaller.
    """
    net = served.calibrated.classifier
    largest = 0.0
    with torch.inference_mode():
        for start in range(0, len(images), max(BATCH_SIZES)):
            some = torch.from_numpy(images[start : start + max(BATCH_SIZES)])
            features = net.features(some.permute(0, 3, 1, 2).float() / 255)
            sums = features.abs() @ net.head.weight.abs().T + net.head.bias.abs()
            largest = max(largest, float(sums.max()))
    return largest / served.calibrated.temperature


def _torch_logits(
    served: Served, images: npt.NDArray[np.uint8], batch_size: int
) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        parts = [
            served(torch.from_numpy(images[start : start + batch_size]))[1]
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts).numpy()
