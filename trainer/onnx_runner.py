"""The exported file in ONNX Runtime on the CPU, as a server would run it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from trainer.threads import onnx_threads

Floats = npt.NDArray[np.float32]


def open_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """`model` on all cores that may be used."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = onnx_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxRunner:
    """uint8 [n, S, S, 3] -> probabilities and logits, float32 [n, K] each."""

    def __init__(self, model: Path | bytes) -> None:
        self._session = open_session(model)

    def run(self, images: npt.NDArray[np.uint8], batch_size: int) -> tuple[Floats, Floats]:
        """In batches of `batch_size`; the last one may be smaller."""
        parts = [
            self._session.run(
                ["probabilities", "logits"], {"image": images[start : start + batch_size]}
            )
            for start in range(0, len(images), batch_size)
        ]
        probabilities, logits = zip(*parts, strict=True)
        return np.concatenate(probabilities), np.concatenate(logits)
