"""Runs of fixed batch sizes whose input and outputs stay in place in a device's memory."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.golden import Floats, Images
from serving.modelspec import INPUT
from serving.runtime import onnxruntime

_GRAPH = "gpu_graph_id"  # a run option; -1: neither captured nor replayed


@dataclass(frozen=True, kw_only=True)
class _Bound:
    binding: onnxruntime.IOBinding
    image: onnxruntime.OrtValue  # uint8 [n, S, S, 3]
    outputs: tuple[onnxruntime.OrtValue, ...]  # float32 [n, ...] each
    options: onnxruntime.RunOptions


class BoundRuns:
    """Nothing is allocated in a run; the input is copied to its place and the outputs from theirs.

    Such runs are what CUDA graphs can be captured from: a session that was opened with them does so
    in the first run of each size, and replays it from then on (onnxruntime.ai, "CUDA Execution
    Provider", Using CUDA Graphs). `run` may be called from any thread.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        sizes: Sequence[int],
        *,
        side: int,
        outputs: Mapping[str, int],
        device: str,
    ) -> None:
        """side: pixels. outputs: name -> numbers for each photo. device: of the session, "cuda" or
        "cpu"."""
        self._session = session
        self._outputs = list(outputs)
        self._lock = threading.Lock()  # the places are the same in each run
        self._bound: dict[int, _Bound] = {}
        for number, size in enumerate(sizes, start=1):
            binding = session.io_binding()
            image = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                (size, side, side, 3), np.uint8, device
            )
            binding.bind_ortvalue_input(INPUT, image)
            places = tuple(
                onnxruntime.OrtValue.ortvalue_from_shape_and_type((size, width), np.float32, device)
                for width in outputs.values()
            )
            for name, place in zip(outputs, places, strict=True):
                binding.bind_ortvalue_output(name, place)
            options = onnxruntime.RunOptions()
            options.add_run_config_entry(_GRAPH, str(number))
            self._bound[size] = _Bound(
                binding=binding, image=image, outputs=places, options=options
            )

    def run(self, images: Images) -> tuple[Floats, ...]:
        """As Engine.run, of any number of images; only those of the fixed sizes gain by it."""
        bound = self._bound.get(len(images))
        if bound is None:
            options = onnxruntime.RunOptions()
            options.add_run_config_entry(_GRAPH, "-1")
            return tuple(self._session.run(self._outputs, {INPUT: images}, options))
        with self._lock:
            bound.image.update_inplace(np.ascontiguousarray(images))
            self._session.run_with_iobinding(bound.binding, bound.options)
            # On the CPU these are views of the places themselves.
            return tuple(np.array(output.numpy()) for output in bound.outputs)
