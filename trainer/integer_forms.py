"""Graphs rewritten into forms that ONNX Runtime computes in integers from end to end."""

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

_STEP = np.float32(1 / 255)  # of a hard sigmoid: 256 values from 0 to 1
_HALF = np.uint8(128)


def pool_means(model: onnx.ModelProto) -> None:
    """Means over height and width as GlobalAveragePool, of which there is a kernel for integers.

    In place; shapes must have been inferred.
    """
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in graph.value_info
        if value.type.tensor_type.HasField("shape")
    }
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in values:
            continue
        axes = sorted(int(axis) % 4 for axis in numpy_helper.to_array(values[node.input[1]]))
        keeps = all(a.i == 1 for a in node.attribute if a.name == "keepdims")
        if axes == [2, 3] and keeps and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    _forget_unused(graph)


def integer_hard_sigmoids(model: onnx.ModelProto) -> None:
    """Hard sigmoids of a quantised model (QDQ) as products in integers. In place.

    clip(x / 6 + 1/2, 0, 1) is x / 6 in steps of 1/255 around 128, where the integers end at 0 and
    255, read as steps of 1/255 around 0. ONNX Runtime has no hard sigmoid in integers: a hard swish
    (Howard et al. 2019, arXiv:1905.02244, section 5.2) went to float and back.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    consumers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        source, targets = producers.get(node.input[0]), consumers[node.output[0]]
        if (
            node.op_type != "HardSigmoid"
            or not _of_torch(node)
            or source is None
            or source.op_type != "DequantizeLinear"
            or [target.op_type for target in targets] != ["QuantizeLinear"]
        ):
            nodes.append(node)
            continue
        sixth, own = f"{node.output[0]}_sixth", f"{node.output[0]}_own"
        nodes += [
            helper.make_node("DequantizeLinear", list(source.input), [own], name=own),
            helper.make_node("DequantizeLinear", ["hs_255", "hs_sixth"], [sixth], name=sixth),
            helper.make_node("Mul", [own, sixth], list(node.output), name=node.name),
        ]
        targets[0].input[1:] = ["hs_step", "hs_half"]
        for reader in consumers[targets[0].output[0]]:
            reader.input[1:] = ["hs_step", "hs_zero"]
    if len(nodes) == len(graph.node):
        return
    del graph.node[:]
    graph.node.extend(nodes)
    constants = {
        "hs_255": np.uint8(255),
        "hs_sixth": np.float32(1 / (6 * 255)),
        "hs_step": _STEP,
        "hs_half": _HALF,
        "hs_zero": np.uint8(0),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    _forget_unused(graph)


def _of_torch(node: onnx.NodeProto) -> bool:
    given = {attribute.name: attribute.f for attribute in node.attribute}
    return bool(abs(given.get("alpha", 0.2) - 1 / 6) < 1e-6 and given.get("beta", 0.5) == 0.5)


def _forget_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
