"""Messages of the Open Inference Protocol to photos, and rows of outputs to its messages."""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from protos.inference import grpc_service_pb2 as pb
from serving.catalogue import ServedVersion
from serving.classification import Photo, best_labels, check_count
from serving.errors import InvalidRequest
from serving.modelspec import FAMILIARITY, INPUT
from serving.turns import Priority
from serving.typed_pixels import OVER_255, Pixels

CLASSIFICATION = "classification"
SHARED_MEMORY = "shared_memory_region"

Parameters = Mapping[str, pb.InferParameter]
_LENGTH = struct.Struct("<I")
_SHOWN = 8  # so many names or numbers of a caller's stand in an error; a shape has 4 at most


def photos_of(
    request: pb.ModelInferRequest, pixels: Pixels | None, side: int, most: int
) -> Sequence[Photo]:
    """The photos of a call: encoded bytes, or uint8 [S, S, 3] each, without a copy where they came
    raw. pixels: see InferRequest. No more than `most` are looked at. Raises InvalidRequest."""
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = [tensor.name[:64] for tensor in request.inputs[:_SHOWN]]
        raise InvalidRequest(f"the call must have one input, {INPUT!r}; it has {names}")
    tensor = request.inputs[0]
    _refuse_shared_memory(tensor.parameters)
    if len(request.raw_input_contents) > 1:
        raise InvalidRequest("raw_input_contents must have one element for each input, so one")
    raw = request.raw_input_contents[0] if request.raw_input_contents else None
    if raw is not None and tensor.HasField("contents"):
        raise InvalidRequest("the elements must come in contents or raw_input_contents, not both")
    shape = tuple(tensor.shape[:_SHOWN])
    if tensor.datatype == "BYTES":
        if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or shape[0] < 0:
            raise InvalidRequest(
                f"input {INPUT!r} as BYTES must have the shape [n] or [n, 1]; got {_text(tensor)}"
            )
        check_count(shape[0], most)
        elements = tensor.contents.bytes_contents if raw is None else _elements(raw)
        photos = list(islice(elements, shape[0] + 1))
        if len(photos) != shape[0]:
            found = len(photos) if len(photos) < shape[0] else f"more than {shape[0]}"
            raise InvalidRequest(
                f"input {INPUT!r} has {found} elements; its shape is {_text(tensor)}"
            )
        return photos
    if tensor.datatype == "UINT8":
        if len(shape) != 4 or shape[1:] != (side, side, 3) or shape[0] < 0:
            raise InvalidRequest(
                f"input {INPUT!r} as UINT8 must have the shape [n, {side}, {side}, 3]; "
                f"got {_text(tensor)}"
            )
        check_count(shape[0], most)
        typed = tensor.contents.uint_contents if pixels is None else pixels
        size = len(typed if raw is None else raw)
        if size != math.prod(shape):
            raise InvalidRequest(
                f"input {INPUT!r} has {size:,} bytes; its shape {_text(tensor)} needs "
                f"{math.prod(shape):,}"
            )
        if raw is not None:
            flat = np.frombuffer(raw, np.uint8)
        else:
            flat = _typed(tensor.contents) if pixels is None else pixels.array()
        return list(flat.reshape(shape))
    raise InvalidRequest(
        f"input {INPUT!r} must be BYTES (encoded photos) or UINT8 (pixels); "
        f"got {tensor.datatype[:64]!r}"
    )


def timeout_of(request: pb.ModelInferRequest) -> float:
    """Seconds from the receipt that the answer may take; inf if the call does not say."""
    timeout = request.parameters.get("timeout")
    if timeout is None:
        return math.inf
    value = _integer("timeout", timeout)
    return value / 1e6 if value else math.inf


def priority_of(request: pb.ModelInferRequest) -> Priority:
    """As Triton counts: 1 goes first, and so does a call that says nothing, or 0."""
    parameter = request.parameters.get("priority")
    low = parameter is not None and _integer("priority", parameter) > 1
    return Priority.LOW if low else Priority.HIGH


def routing_key_of(request: pb.ModelInferRequest) -> str:
    """An extension of ours: see ClassifyRequest."""
    parameter = request.parameters.get("routing_key")
    if parameter is None:
        return ""
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise InvalidRequest("parameter 'routing_key' must be a string")
    return str(parameter.string_param)


def wanted_outputs(request: pb.ModelInferRequest, outputs: Sequence[str]) -> list[tuple[str, int]]:
    """Name and number of labels (0: the values themselves) of each output that is asked for.

    outputs: of the version. Raises InvalidRequest.
    """
    wanted = []
    for output in request.outputs:
        if output.name not in outputs:
            raise InvalidRequest(
                f"there is no output {output.name[:64]!r}; outputs: {', '.join(outputs)}"
            )
        _refuse_shared_memory(output.parameters)
        count = 0
        if CLASSIFICATION in output.parameters:
            count = _integer(CLASSIFICATION, output.parameters[CLASSIFICATION])
        if count and output.name == FAMILIARITY:
            raise InvalidRequest(
                f"output {FAMILIARITY!r} is one number and has no labels; "
                f"ask for it without {CLASSIFICATION!r}"
            )
        wanted.append((output.name, count))
    if len({name for name, _ in wanted}) < len(wanted):
        raise InvalidRequest("an output is asked for twice")
    return wanted or [(name, 0) for name in outputs]


def infer_response(
    request: pb.ModelInferRequest,
    served: ServedVersion,
    wanted: Sequence[tuple[str, int]],
    rows: Sequence[tuple[npt.NDArray[np.float32], ...]],
) -> pb.ModelInferResponse:
    """rows: float32 [...] of each of the engine's outputs, for each photo. Raw if the request
    was."""
    manifest, outputs = served.engine.manifest, served.engine.outputs
    response = pb.ModelInferResponse(
        model_name=manifest.name, model_version=str(manifest.version), id=request.id
    )
    raw = bool(request.raw_input_contents)
    for name, count in wanted:
        values = np.stack([row[outputs.index(name)] for row in rows])
        tensor = response.outputs.add(name=name)
        if count:
            texts = [list(_classes(row, manifest.labels, count)) for row in values]
            tensor.datatype = "BYTES"
            tensor.shape.extend((len(texts), len(texts[0])))
            flat = [text for row in texts for text in row]
            if raw:
                data = b"".join(_LENGTH.pack(len(text)) + text for text in flat)
                response.raw_output_contents.append(data)
            else:
                tensor.contents.bytes_contents.extend(flat)
        else:
            tensor.datatype = "FP32"
            tensor.shape.extend(values.shape)
            if raw:
                response.raw_output_contents.append(values.astype("<f4", copy=False).tobytes())
            else:
                tensor.contents.fp32_contents.extend(values.ravel().tolist())
    return response


def _elements(raw: bytes) -> Iterator[bytes]:
    """The elements of a raw BYTES tensor: each behind its length, uint32, little-endian."""
    start = 0
    while start < len(raw):
        end = start + _LENGTH.size
        if end <= len(raw):
            end += _LENGTH.unpack_from(raw, start)[0]
        if end > len(raw):
            raise InvalidRequest(
                f"input {INPUT!r} ends within an element: each must come behind its length, 4 "
                "bytes, little-endian"
            )
        yield raw[start + _LENGTH.size : end]
        start = end


def _text(tensor: pb.ModelInferRequest.InferInputTensor) -> str:
    """Its shape, for an error."""
    shown = ", ".join(map(str, tensor.shape[:_SHOWN]))
    return f"[{shown}{', ...' if len(tensor.shape) > _SHOWN else ''}]"


def _typed(contents: pb.InferTensorContents) -> npt.NDArray[np.uint8]:
    values = np.array(contents.uint_contents, np.uint32)
    if values.size and values.max() > 255:
        raise InvalidRequest(OVER_255)
    return values.astype(np.uint8)


def _classes(values: npt.NDArray[np.float32], labels: Sequence[str], count: int) -> Iterator[bytes]:
    """The best `count`, or all if there are fewer, as Triton writes them."""
    for label in best_labels(values, labels, count):
        yield f"{label.probability:f}:{label.index}:{label.name}".encode()


def _integer(name: str, parameter: pb.InferParameter) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise InvalidRequest(f"parameter {name!r} must be an integer, 0 or more")
    return int(value)


def _refuse_shared_memory(parameters: Parameters) -> None:
    if SHARED_MEMORY in parameters:
        raise InvalidRequest("shared memory is not served; send the elements in the message")
