"""How much memory of each GPU is in use, where there is one and NVIDIA's nvidia-ml-py to ask."""

import functools
import logging
from typing import Any

log = logging.getLogger(__name__)


def gpu_memory() -> list[tuple[int, int]] | None:
    """(used, total) bytes of each GPU; None where they can't be asked."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return [
            (memory.used, memory.total)
            for index in range(nvml.nvmlDeviceGetCount())
            for memory in (nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index)),)
        ]
    except nvml.NVMLError as error:
        log.warning("the memory of the GPUs can't be read: %s", error)
        return None


@functools.cache
def _nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None  # the extra `cuda` brings it
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None  # no driver: a machine without a GPU
    return pynvml
