"""An exported file in 16-bit floats, for GPUs."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from trainer.quantized_weights import LAYERS


def to_half(path: Path) -> onnx.ModelProto:
    """The same graph in float16, with its inputs and outputs as they were.

    Normalisation before the first layer, and softmax, stay in float32: probabilities near 0 are
    where 11 bits of mantissa and 5 of exponent tell.
    """
    model = onnx.load(path)
    nodes = list(model.graph.node)
    first = next((i for i, node in enumerate(nodes) if node.op_type in LAYERS), len(nodes))
    _own_constants(model.graph, nodes[:first])
    with warnings.catch_warnings():  # of weights too small for float16, which become 0
        warnings.simplefilter("ignore", UserWarning)
        half: onnx.ModelProto = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=["Softmax"],
            node_block_list=[node.name for node in nodes[:first]],
        )
    _drop_round_trips(half)
    ONNXModel(half).topological_sort()  # the converter appends its casts
    del half.graph.value_info[:]  # and leaves the types of what was between
    onnx.checker.check_model(half, full_check=True)
    return half


def _own_constants(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give each of these nodes a copy of an initializer that another node takes too.

    Where mean and std are equal the exporter makes them one. Of an initializer that two nodes in
    float32 take, the converter would make two casts of one name.
    """
    shared = {initializer.name: initializer for initializer in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input if name in shared)
    for node in nodes:
        for i, name in enumerate(node.input):
            if uses[name] > 1:
                uses[name] -= 1
                copy = graph.initializer.add()
                copy.CopyFrom(shared[name])
                copy.name = node.input[i] = f"{name}_own_{uses[name]}"


def _drop_round_trips(model: onnx.ModelProto) -> None:
    """Between two nodes in float32 the converter casts to float16 and back: pass those by."""
    down = {n.output[0]: n.input[0] for n in model.graph.node if _casts_to(n, TensorProto.FLOAT16)}
    back = {
        n.output[0]: down[n.input[0]]
        for n in model.graph.node
        if _casts_to(n, TensorProto.FLOAT) and n.input[0] in down
    }
    outputs = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = back.get(name, name)
        if node.op_type == "Cast" and node.output[0] in back and node.output[0] in outputs:
            node.op_type = "Identity"
            node.input[0] = back[node.output[0]]
            del node.attribute[:]
    while dead := _unused(model):
        for node in dead:
            model.graph.node.remove(node)


def _unused(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    used = {name for node in model.graph.node for name in node.input}
    used |= {output.name for output in model.graph.output}
    return [node for node in model.graph.node if not used & set(node.output)]


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and bool(node.attribute[0].i == kind)
