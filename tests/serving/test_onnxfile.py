import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.errors import BrokenVersion
from serving.onnxfile import refuse_external_data
from tests.tiny import tiny_model


def external(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor, its values said to lie in another file."""
    tensor = onnx.TensorProto.FromString(tensor.SerializeToString())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


TENSOR = external(numpy_helper.from_array(np.ones(4, np.float32), "t"))


def in_initializer(model: onnx.ModelProto) -> None:
    weights = next(t for t in model.graph.initializer if t.name == "weights")
    weights.CopyFrom(external(weights))


def in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=TENSOR))


def in_tensor_list(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(helper.make_attribute("values", [TENSOR]))
    model.graph.node.append(node)


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [TENSOR])
    outer = helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=inner)], "outer", [], []
    )
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], else_branch=outer))


def in_function(model: onnx.ModelProto) -> None:
    function = model.functions.add()
    function.node.append(helper.make_node("Constant", [], ["c"], value=TENSOR))


def in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(TENSOR)


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(TENSOR)


def location_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def entry_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add().key = "location"


@pytest.mark.parametrize(
    "hide",
    [
        in_initializer,
        in_constant,
        in_tensor_list,
        in_subgraph,
        in_function,
        in_sparse,
        in_training,
        location_alone,
        entry_alone,
    ],
)
def test_external_data_is_found_wherever_it_hides(hide) -> None:
    model = tiny_model()
    hide(model)
    with pytest.raises(BrokenVersion, match="external"):
        refuse_external_data(model.SerializeToString(), "pets/1/model.onnx")


def test_a_second_graph_field_is_looked_at_too() -> None:
    """Protobuf merges a repeated singular message: the tensor may stand in the second part."""
    model = onnx.ModelProto()
    model.graph.initializer.append(TENSOR)
    data = tiny_model().SerializeToString() + model.SerializeToString()
    with pytest.raises(BrokenVersion, match="external"):
        refuse_external_data(data, "f")


def test_sound_models_pass() -> None:
    refuse_external_data(tiny_model().SerializeToString(), "f")
    with_default = tiny_model()
    with_default.graph.initializer[0].data_location = TensorProto.DEFAULT
    refuse_external_data(with_default.SerializeToString(), "f")


def test_malformed_bytes_are_refused() -> None:
    data = tiny_model().SerializeToString()
    for bad in (data[:-1], data[: len(data) // 2], b"\xff" * 40, b"\x08", b"\x3b\x3c", b"\x38\x01"):
        with pytest.raises(BrokenVersion, match="f is not an ONNX file"):
            refuse_external_data(bad, "f")


def test_random_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    data = tiny_model().SerializeToString()
    for _ in range(2000):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            damaged[position] = generator.integers(0, 256)
        try:
            refuse_external_data(bytes(damaged), "f")
        except BrokenVersion:
            pass
