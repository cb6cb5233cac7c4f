"""The familiarity of a picture as one more output of an exported file."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.modelspec import FAMILIARITY
from trainer.exporter import head_node
from trainer.familiarity import NO_LENGTH, Doubles, Gaussian


def attach(model: onnx.ModelProto, gaussian: Gaussian, known: Doubles) -> None:
    """Let `model` give the familiarity too, float32 [n, 1], in 32 bits whatever its own precision.
    In place.

    known: distances [m] of the photos that are compared with.
    """
    graph = model.graph
    features = head_node(model).input[0]

    def constant(name: str, value: object) -> str:
        kind = np.int64 if isinstance(value, list) else np.float32
        named = f"{FAMILIARITY}.{name}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), named))
        return named

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        named = output if output == FAMILIARITY else f"{FAMILIARITY}.{output}"
        graph.node.append(helper.make_node(kind, inputs, [named], name=named, **attributes))
        return named

    columns = constant("columns", [1])
    numbers = node("Cast", [features], "features", to=TensorProto.FLOAT)
    numbers_squared = node("Mul", [numbers, numbers], "features_squared")
    summed = node("ReduceSum", [numbers_squared, columns], "summed", keepdims=1)
    above_0 = node("Add", [summed, constant("no_length", NO_LENGTH)], "above_0")
    directed = node("Div", [numbers, node("Sqrt", [above_0], "length")], "directed")
    away = node("Sub", [directed, constant("centre", gaussian.centre)], "away")
    directions = constant("directions", gaussian.directions)
    along = node("MatMul", [away, directions], "along")
    left = node("Gemm", [along, directions, away], "left", alpha=-1.0, transB=1)
    # No number is too large for 16 bits, in which TensorRT may compute them.
    usual = np.median(known)
    parts = []
    for part, name, variance in (
        (along, "along", gaussian.variances),
        (left, "left", gaussian.rest),
    ):
        factor = constant(f"{name}_factor", 1 / np.sqrt(usual * variance))
        scaled = node("Mul", [part, factor], f"{name}_scaled")
        squares = node("Mul", [scaled, scaled], f"{name}_squares")
        parts.append(node("ReduceSum", [squares, columns], f"{name}_sum", keepdims=1))
    distance = node("Add", parts, "distance")
    # Of a distance that is no number none is farther.
    farther = node("GreaterOrEqual", [constant("known", known[None] / usual), distance], "farther")
    ones = node("Cast", [farther], "ones", to=TensorProto.FLOAT)
    count = node("ReduceSum", [ones, columns], "count", keepdims=1)
    with_itself = node("Add", [count, constant("itself", 1.0)], "with_itself")
    node("Div", [with_itself, constant("all", len(known) + 1.0)], FAMILIARITY)
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    graph.output.append(helper.make_tensor_value_info(FAMILIARITY, TensorProto.FLOAT, [batch, 1]))
    onnx.checker.check_model(model, full_check=True)
