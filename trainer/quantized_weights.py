"""How fine the weights of a layer are in 8-bit integers, so that no processor's sums overflow."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Floats = npt.NDArray[np.floating]

_LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Weighted:
    node: str
    weight: str
    rows: Floats  # [N, K]: by output, in the order of the sum
    axis: int  # of the outputs in the tensor
    depthwise: bool


def weighted(prepared: onnx.ModelProto) -> Iterator[Weighted]:
    """The nodes with weights of their own, in order."""
    constants = {tensor.name: tensor for tensor in prepared.graph.initializer}
    for node in prepared.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        integers = {a.name: a.i for a in node.attribute}
        depthwise, axis = False, 0
        if node.op_type == "Conv":  # the channels of a pixel one after another
            groups = integers.get("group", 1)
            depthwise = groups > 1 and weight.shape[:2] == (groups, 1)
            rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        elif integers.get("transB"):
            rows = weight
        else:
            rows, axis = np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1), weight.ndim - 1
        yield Weighted(
            node=node.name, weight=node.input[1], rows=rows, axis=axis, depthwise=depthwise
        )


def weight_steps(rows: Floats, *, depthwise: bool) -> Floats:
    """The step [N] of each output's weights: as fine as 8 bits allow without saturation.

    rows [N, K]: in the order in which they are multiplied. x86 without VNNI multiplies two
    neighbours by 8-bit activations and adds them in 16 bits, so their sizes may be 128 together;
    7-bit weights would do as well, but are two to three times as far from the float net.
    Depthwise convolutions are computed in another way.
    """
    size = np.abs(rows)
    steps = size.max(axis=1) / 127
    if depthwise or rows.shape[1] < 2:
        return np.asarray(steps)
    pairs = (size[:, :-1] + size[:, 1:]).max(axis=1)
    return np.asarray(np.maximum(steps, pairs / 127))  # each may be rounded up by a half
