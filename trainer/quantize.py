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

import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
    quant_pre_process,
)

from serving.modelspec import INPUT
from trainer.hard_sigmoids import integer_hard_sigmoids
from trainer.integer_forms import pool_means
from trainer.pictures import Pixels
from trainer.quantized_weights import weight_steps, weighted

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
_ACTIVATIONS = ("Relu", "Clip")
# Before these ONNX Runtime makes numbers of integers, or behind them: it is all the same to them.
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool")
_AT_ONCE = 8  # photos whose every activation is in memory


def prepare(model: Path) -> onnx.ModelProto:
    """The same graph with constants folded and shapes inferred, as quantisation needs it."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "prepared.onnx")
        quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
        prepared = onnx.load(path)
    _widen_normalisation(prepared)
    pool_means(prepared)
    return prepared


def _widen_normalisation(prepared: onnx.ModelProto) -> None:
    """Repeat the means and deviations of the channels over a row of the picture.

    Convolutions of integers want channels last, so ONNX Runtime has the picture normalised in that
    order, where three numbers at a time took a quarter of mobilenet_v2's time.
    """
    (image,) = (value for value in prepared.graph.input if value.name == INPUT)
    width = image.type.tensor_type.shape.dim[2].dim_value
    shapes = {value.name: value for value in prepared.graph.value_info}
    for tensor in prepared.graph.initializer:
        if tensor.name.endswith((".mean", ".std")) and list(tensor.dims) == [1, 3, 1, 1]:
            row = numpy_helper.to_array(tensor).repeat(width, axis=3)
            tensor.CopyFrom(numpy_helper.from_array(row, tensor.name))
            if tensor.name in shapes:
                prepared.graph.value_info.remove(shapes[tensor.name])


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

    Every x86 gives the same answers, see `weight_steps`. ONNX Runtime adds (QLinearAdd) in fixed
    point on Arm, and in floats on x86: there a few sums of a million are rounded otherwise.
    """
    integers = {"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False}
    weights = {
        layer.weight.name: [
            {"axis": layer.axis, "rmin": -127 * step, "rmax": 127 * step, **integers}
            for step in weight_steps(layer.rows(), depthwise=layer.depthwise).tolist()
        ]
        for layer in weighted(prepared)
        if not only or layer.node.name in only
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(prepared)
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            True,  # by channel
            False,  # all of the 8 bits
            QuantType.QInt8,
            QuantType.QUInt8,
            ranges,
            list(only),
            _with_neighbours(prepared, [*in_float, *_products(prepared)]),
            list(_OPERATORS),
            {
                "TensorQuantOverrides": weights,
                "OpTypesToExcludeOutputQuantization": ["Gemm"],  # 256 steps would tie logits
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    integer_hard_sigmoids(quantized)
    _hold_in_float(quantized, in_float)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _hold_in_float(quantized: onnx.ModelProto, names: Collection[str]) -> None:
    """Put a clip at no bounds before each of these layers. In place.

    Between integers ONNX Runtime makes integers of a layer in float itself (its pass
    WeightBiasQuantization), and with one step for the weights of all channels.
    """
    graph = quantized.graph
    producers = {name: node for node in graph.node for name in node.output}

    def stored(name: str) -> bool:
        node = producers.get(name)
        while node is not None and node.op_type in _MOVING:
            node = producers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in names and stored(node.input[0]):
            held = f"{node.name}_in_float"
            nodes.append(helper.make_node("Clip", [node.input[0]], [held], name=held))
            node.input[0] = held
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def layers(prepared: onnx.ModelProto) -> list[str]:
    """The nodes with weights of their own, in order."""
    return [layer.node.name for layer in weighted(prepared)]


def _products(prepared: onnx.ModelProto) -> list[str]:
    """The nodes that multiply what no weights are, as attention does: 256 steps are too few for it.

    Of the quantiser's option for that, MatMulConstBOnly, its QDQ form knows nothing.
    """
    own = set(layers(prepared))
    return [n.name for n in prepared.graph.node if n.op_type == "MatMul" and n.name not in own]


def _with_neighbours(model: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """These nodes, the Relu or Clip after each, and the Concat before that is read by no other, as
    that of a picture and its mirror image.

    The quantiser drops those, as the range of the integers clips as well; behind a layer in float
    nothing else would.
    """
    outputs = {output for n in model.graph.node if n.name in names for output in n.output}
    after = [
        node.name
        for node in model.graph.node
        if node.op_type in _ACTIVATIONS and node.input[0] in outputs
    ]
    read = {n.input[0] for n in model.graph.node if n.name in names}
    others = {name for n in model.graph.node if n.name not in names for name in n.input}
    before = [
        node.name
        for node in model.graph.node
        if node.op_type == "Concat" and node.output[0] in read - others
    ]
    return [*names, *after, *before]


class _Photos(CalibrationDataReader):  # type: ignore[misc]
    """One batch, for the calibrator."""

    def __init__(self, images: Pixels) -> None:
        self._batches = iter([{INPUT: images}])

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
