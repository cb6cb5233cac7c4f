"""An exported file in 8-bit integers: static quantisation, calibrated on training photos.

Weights are symmetric by output channel, activations asymmetric by tensor, in QDQ form (Jacob et al.
2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295, section 3).
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
    quant_pre_process,
)

Pixels = npt.NDArray[np.uint8]
Ranges = Any  # onnxruntime's: tensor -> the range that its 256 steps cover

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# What runs in integers. Normalisation comes before the first of them and stays in float, and so do
# softmax, layer norms and the products of attention.
_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Reshape", "Flatten"),
)
_LAYERS = ("Conv", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "Clip")
_AT_ONCE = 8  # photos whose every activation is in memory


def prepare(model: Path) -> onnx.ModelProto:
    """The same graph with constants folded and shapes inferred, as quantisation needs it."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "prepared.onnx")
        quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
        return onnx.load(path)


def calibrate(prepared: onnx.ModelProto, images: Pixels, method: str) -> Ranges:
    """The ranges of all activations over uint8 [n, S, S, 3], by one of METHODS."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "prepared.onnx")
        onnx.save(prepared, path)
        calibrator = create_calibrator(
            path,
            list(_OPERATORS),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=METHODS[method],
            extra_options={"symmetric": False},
        )
        for start in range(0, len(images), _AT_ONCE):
            calibrator.collect_data(_Photos(images[start : start + _AT_ONCE]))
        return calibrator.compute_data()


def quantize(
    prepared: onnx.ModelProto,
    ranges: Ranges,
    *,
    only: Sequence[str] = (),
    in_float: Collection[str] = (),
) -> onnx.ModelProto:
    """`prepared` in 8-bit integers, but for the layers `in_float`; `only` these layers, if given.

    Without VNNI, x86 adds pairs of products in 16 bits, which saturate; 7-bit weights can't make
    them, and so every processor gives the same answers. Depthwise convolutions are computed in
    another way, and need their 8 bits most.
    """
    whole = {
        node.input[1]: [
            {"axis": 0, "quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False}
        ]
        for node in prepared.graph.node
        if _is_depthwise(node, prepared)
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(prepared)
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            True,  # by channel
            True,  # 7-bit weights
            QuantType.QInt8,
            QuantType.QUInt8,
            ranges,
            list(only),
            _with_activations(prepared, in_float),
            list(_OPERATORS),
            {
                "TensorQuantOverrides": whole,
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["Gemm"],  # 256 steps would tie logits
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def layers(prepared: onnx.ModelProto) -> list[str]:
    """The nodes with weights of their own, in order."""
    constants = {tensor.name for tensor in prepared.graph.initializer}
    return [
        node.name
        for node in prepared.graph.node
        if node.op_type in _LAYERS and node.input[1] in constants
    ]


def _is_depthwise(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """One input and one output channel a group."""
    if node.op_type != "Conv":
        return False
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return groups > 1 and shapes.get(node.input[1], ())[:2] == (groups, 1)


def _with_activations(model: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """These nodes and the Relu or Clip after each.

    The quantiser drops those, as the range of the integers clips as well; behind a layer in float
    nothing else would.
    """
    outputs = {output for n in model.graph.node if n.name in names for output in n.output}
    after = [
        node.name
        for node in model.graph.node
        if node.op_type in _ACTIVATIONS and node.input[0] in outputs
    ]
    return [*names, *after]


class _Photos(CalibrationDataReader):  # type: ignore[misc]
    """One batch, for the calibrator."""

    def __init__(self, images: Pixels) -> None:
        self._batches = iter([{"image": images}])

    def get_next(self) -> dict[str, Pixels] | None:
        return next(self._batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the quantiser prints from the terminal."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
