"""Graphs rewritten into forms that ONNX Runtime computes in integers from end to end."""

import onnx
from onnx import numpy_helper


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
    forget_unused(graph)


def forget_unused(graph: onnx.GraphProto) -> None:
    """Drop the constants that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
