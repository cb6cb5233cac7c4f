"""How fine the weights of a layer are in 8-bit integers, so that no processor's sums overflow."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from trainer.metrics import Floats

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A layer and its weights."""

    node: onnx.NodeProto
    weight: onnx.TensorProto

    @property
    def axis(self) -> int:
        """Of the outputs, in the weights."""
        first = self.node.op_type == "Conv" or self._integer("transB", 0)
        return 0 if first else len(self.weight.dims) - 1

    @property
    def depthwise(self) -> bool:
        """One input and one output channel a group."""
        groups = self._integer("group", 1)
        return groups > 1 and tuple(self.weight.dims[:2]) == (groups, 1)

    def rows(self) -> Floats:
        """[N, K]: by output, in the order of the sum; the channels of a pixel come together."""
        weight: Floats = np.moveaxis(numpy_helper.to_array(self.weight), self.axis, 0)
        if self.node.op_type == "Conv":
            weight = np.moveaxis(weight, 1, -1)
        return weight.reshape(len(weight), -1)

    def _integer(self, name: str, default: int) -> int:
        return next((a.i for a in self.node.attribute if a.name == name), default)


def weighted(prepared: onnx.ModelProto) -> Iterator[Weighted]:
    """The nodes with weights of their own, in order."""
    constants = {tensor.name: tensor for tensor in prepared.graph.initializer}
    for node in prepared.graph.node:
        if node.op_type in LAYERS and node.input[1] in constants:
            yield Weighted(node=node, weight=constants[node.input[1]])


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
