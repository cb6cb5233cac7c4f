"""Finds external data in an ONNX file, from its bytes alone (the serving environment has no onnx).

A tensor may name another file to hold its values; ONNX Runtime would open that path, unchecked by
any digest of ours. So the file is walked in protobuf's wire format along the fields of onnx.proto
that lead to tensors.
"""

from serving.errors import BrokenVersion
from serving.wire_format import fields

# message -> field number -> message in that field, after onnx.proto of ONNX 1.19
_CHILDREN = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14


def refuse_external_data(data: bytes, file: str) -> None:
    """Raises BrokenVersion if any tensor of the model names another file, or on malformed bytes.

    Stricter than ONNX Runtime: any external_data entry or data_location but the default counts.
    """
    try:
        found = _has_external_tensor(memoryview(data), "Model")
    except (IndexError, ValueError, RecursionError) as error:
        raise BrokenVersion(f"{file} is not an ONNX file: {error}") from error
    if found:
        raise BrokenVersion(
            f"{file} keeps tensors in external files; export it as one file without external data"
        )


def _has_external_tensor(message: memoryview, kind: str) -> bool:
    children = _CHILDREN[kind]
    for number, value, _ in fields(message):
        if kind == "Tensor" and (
            number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0)
        ):
            return True
        if number in children:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {number} of {kind} is not a message")
            if _has_external_tensor(value, children[number]):
                return True
    return False
