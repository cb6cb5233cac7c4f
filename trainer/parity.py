"""The exported file against PyTorch on the same photos: published is only what agrees."""

import copy
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
_ROUNDINGS = 4  # of PyTorch's own: the file, which adds up in another order, has one of its own too


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
    rounding: Callable[[], float],
) -> None:
    """Raises FailedCheck with the figures if logits or first labels differ; `names` of photos.

    rounding: gives the `rounding_of` these photos, if it is asked for.
    """
    limit = TOLERANCE * parity.logit_scale
    if not parity.max_logit_error <= limit:  # nan fails too
        limit = max(limit, _ROUNDINGS * rounding())
    if not parity.max_logit_error <= limit:
        raise FailedCheck(
            f"the exported file differs from PyTorch by {parity.max_logit_error:.3g} in logits; "
            f"the limit is {limit:.3g}, where the largest logit is {parity.logit_scale:.3g}: "
            "not published"
        )
    if differ:
        named = ", ".join(f"{names[d.photo]} (margin {d.margin:.3g})" for d in differ[:5])
        raise FailedCheck(
            f"the exported file gives {len(differ)} of {parity.photos} photos another label than "
            f"PyTorch: {named}: not published"
        )


def rounding_of(served: Served, images: npt.NDArray[np.uint8]) -> float:
    """How far PyTorch's own logits of uint8 [n, S, S, 3] are from those in 64 bits; 0 of a net
    that can't compute in them.

    It is much of the logits where these are small beside what they are added up of, as those of a
    net that has found nothing to go by, or where a net has one pixel left to take the mean of.
    """
    batch_size = max(BATCH_SIZES)
    net = copy.deepcopy(served.calibrated).double()
    try:
        with torch.inference_mode():
            parts = [
                net(torch.from_numpy(some).permute(0, 3, 1, 2).double() / 255)
                for some in np.split(images, range(batch_size, len(images), batch_size))
            ]
    except RuntimeError:  # it makes numbers of 32 bits on its way
        return 0.0
    exact = torch.cat(parts).numpy()
    return float(np.abs(_torch_logits(served, images, batch_size) - exact).max())


def _torch_logits(
    served: Served, images: npt.NDArray[np.uint8], batch_size: int
) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        parts = [
            served(torch.from_numpy(images[start : start + batch_size]))[1]
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts).numpy()
