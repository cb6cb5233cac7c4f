"""Settings that nobody gave, chosen from the number of photos and the device."""

from typing import Any

_PER_GPU_BYTE = 64 / 8e9  # photos of 224 px that fit a step of fine-tuning
_LARGE, _HUGE = 2_000, 50_000


def choose(photos: int, gpu_bytes: int | None) -> dict[str, Any]:
    """backbone, batch_size and epochs for so many photos, on a GPU of this memory or on a CPU.

    A CPU gets the net that is exact enough at a tenth of the others' cost; a GPU a larger one, the
    more so with enough photos to fit it to. More photos need fewer epochs for as many steps.
    """
    epochs = 6 if photos < _LARGE else 4 if photos < _HUGE else 2
    if gpu_bytes is None:
        return {"backbone": "mobilenet_v2", "batch_size": 32, "epochs": epochs}
    fits = int(gpu_bytes * _PER_GPU_BYTE)
    batch_size = max(8, min(256, 1 << max(fits, 1).bit_length() - 1))
    backbone = "resnet50" if photos < _LARGE else "convnext_tiny"
    return {"backbone": backbone, "batch_size": batch_size, "epochs": epochs}
