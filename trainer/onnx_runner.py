"""The exported file in ONNX Runtime on the CPU, as a server would run it."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.cores import usable_cores
from serving.modelspec import INPUT, OUTPUTS, SKIPPED_OPTIMIZERS
from trainer.threads import onnx_threads, own_cores

Floats = npt.NDArray[np.float32]

_BATCH = 4  # what its layers make of as many pictures stays in the cache of a core
_AT_ONCE = 32  # pictures on many cores: a share for each, and no more memory than for few cores


class OnnxRunner:
    """Runs of `outputs`, each [n, ...], for pictures uint8 [n, S, S, 3].

    Each core takes a batch by itself, as in a busy server: threads that share one wait for each
    other at every layer. MobileNetV2 on two cores: 8.0 to 8.9 ms of CPU a picture in batches of up
    to 4, and 13.0 to 15.1 where both shared batches of 32.

    alone: all cores share a batch, as in a server with one caller; for its latency. beside_others:
    all processes that torchrun started here run at once, each on its share of the cores; the first
    has them all while it publishes.
    """

    def __init__(
        self,
        model: Path | bytes,
        outputs: Sequence[str] = OUTPUTS,
        *,
        alone: bool = False,
        beside_others: bool = False,
        precision: str = "fp32",
    ) -> None:
        self.outputs = outputs
        cores = own_cores(os.environ) if beside_others else usable_cores()
        self._at_once = 1 if alone else cores
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = onnx_threads() if alone else 1
        self._session = onnxruntime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=SKIPPED_OPTIMIZERS.get(precision),
        )

    def run(
        self, images: npt.NDArray[np.uint8 | np.float32], batch_size: int | None = None
    ) -> tuple[Floats, ...]:
        """In batches of `batch_size`, or as suits the cores; the last one may be smaller."""
        batch_size = batch_size or batch_for(len(images), self._at_once)
        feeds = [
            {INPUT: images[start : start + batch_size]}
            for start in range(0, len(images), batch_size)
        ]
        if len(feeds) == 1:
            return tuple(self._session.run(self.outputs, feeds[0]))
        with ThreadPoolExecutor(self._at_once) as pool:
            parts = list(pool.map(lambda feed: self._session.run(self.outputs, feed), feeds))
        return tuple(np.concatenate(values) for values in zip(*parts, strict=True))


def batch_for(pictures: int, cores: int) -> int:
    """So that all cores have some of them."""
    return min(_BATCH, math.ceil(min(pictures, _AT_ONCE) / cores))
