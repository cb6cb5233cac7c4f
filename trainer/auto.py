"""Settings that nobody gave, chosen from the number of photos and the device."""

from collections.abc import Mapping
from typing import Any

from trainer.threads import own_cores

_PER_GPU_BYTE = 64 / 8e9  # photos of 224 px that fit a step of fine-tuning
_SIZE = 224
_LARGE, _HUGE = 2_000, 50_000
_MAX_WORKERS = 64


def choose(photos: int, *, gpu: bool) -> dict[str, Any]:
    """backbone and epochs for so many photos, on a GPU or on a CPU.

    A CPU gets the net that is exact enough at a tenth of the others' cost; a GPU a larger one, the
    more so with enough photos to fit it to. More photos need fewer epochs for as many steps.
    """
    epochs = 6 if photos < _LARGE else 4 if photos < _HUGE else 2
    if not gpu:
        return {"backbone": "mobilenet_v2", "epochs": epochs}
    return {"backbone": "resnet50" if photos < _LARGE else "convnext_tiny", "epochs": epochs}


def choose_batch_size(size: int, gpu_bytes: int | None) -> int:
    """Photos of `size` px in a step: what this GPU's memory holds, or 32 on a CPU (None).

    Smaller photos than 224 px make no larger batch: it would have fewer steps to learn in.
    """
    if gpu_bytes is None:
        return 32
    fits = int(gpu_bytes * _PER_GPU_BYTE * (_SIZE / max(size, _SIZE)) ** 2)
    return max(8, min(256, 1 << max(fits, 1).bit_length() - 1))


def choose_workers(environment: Mapping[str, str]) -> int:
    """As many as this process has cores."""
    return min(_MAX_WORKERS, own_cores(environment))
