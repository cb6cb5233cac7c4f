"""Hard sigmoids of a quantised model in integers, of which ONNX Runtime has none.

A hard swish, x clip(x / 6 + 1/2, 0, 1) (Howard et al. 2019, arXiv:1905.02244, section 5.2), went to
float and back.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trainer.integer_forms import forget_unused

Nodes = list[onnx.NodeProto]

_COARSER = 1.25  # steps of x that are so much wider than its calibration asks for are still taken


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One hard sigmoid: x -> stored -> source -> sigmoid -> target -> readers."""

    # QuantizeLinear, where x below -3 is all the same to whoever reads it
    stored: onnx.NodeProto | None
    source: onnx.NodeProto  # DequantizeLinear
    sigmoid: onnx.NodeProto
    target: onnx.NodeProto  # QuantizeLinear
    readers: Nodes  # DequantizeLinear


@dataclass(frozen=True)
class _Constants:
    given: dict[str, onnx.TensorProto]
    added: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def value(self, name: str) -> float:
        return float(numpy_helper.to_array(self.given[name]))

    def add(self, name: str, value: np.generic) -> str:
        self.added[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def integer_hard_sigmoids(model: onnx.ModelProto) -> None:
    """Rewrite those that lie between integers (QDQ form). In place."""
    graph = model.graph
    constants = _Constants({tensor.name: tensor for tensor in graph.initializer})
    instead: dict[str, Nodes] = {}  # of the node with this output
    for place in _places(graph):
        zero = _zero_from_three(place.stored, constants) if place.stored else None
        if zero is None:
            instead |= _as_product(place, constants)
        else:
            instead |= _as_clip(place, zero, constants)
    if not instead:
        return
    nodes = [new for node in graph.node for new in instead.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants.added.values())
    forget_unused(graph)


def _places(graph: onnx.GraphProto) -> Iterator[_Place]:
    producers = {name: node for node in graph.node for name in node.output}
    consumers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    for node in graph.node:
        source, targets = producers.get(node.input[0]), consumers[node.output[0]]
        if (
            node.op_type != "HardSigmoid"
            or not _of_torch(node)
            or source is None
            or source.op_type != "DequantizeLinear"
            or [target.op_type for target in targets] != ["QuantizeLinear"]
        ):
            continue
        readers = consumers[targets[0].output[0]]
        products = [
            user.output
            for reader in readers
            for user in consumers[reader.output[0]]
            if user.op_type == "Mul"
        ]
        users = [user.output for user in consumers[source.output[0]] if user.output != node.output]
        stored = producers.get(source.input[0])
        alone_or_swish = (
            stored is not None
            and stored.op_type == "QuantizeLinear"
            and len(consumers[stored.output[0]]) == 1
            and users in ([], products)
        )
        yield _Place(
            stored=stored if alone_or_swish else None,
            source=source,
            sigmoid=node,
            target=targets[0],
            readers=readers,
        )


def _zero_from_three(stored: onnx.NodeProto, constants: _Constants) -> int | None:
    """Which integer is 0 if the lowest is -3; None if that were too coarse for x."""
    step, zero = (constants.value(name) for name in stored.input[1:])
    highest = step * (255 - zero)
    if highest + 3 > _COARSER * 255 * step:
        return None
    return max(1, int(3 * 255 / (highest + 3)))


def _as_clip(place: _Place, zero: int, constants: _Constants) -> dict[str, Nodes]:
    """x in steps of 3 / `zero` from -3 on, below which hard sigmoid and hard swish are 0 anyway.

    The same integers, cut off where x is 3, are the hard sigmoid in steps of 1 / (2 zero).
    """
    assert place.stored is not None
    x = [
        constants.add(f"hs_{zero}_step", np.float32(3 / zero)),
        constants.add(f"hs_{zero}_zero", np.uint8(zero)),
    ]
    y = [
        constants.add(f"hs_{zero}_unit", np.float32(1 / (2 * zero))),
        constants.add("hs_none", np.uint8(0)),
    ]
    three = constants.add(f"hs_{zero}_three", np.uint8(min(2 * zero, 255)))
    place.stored.input[1:] = x
    place.source.input[1:] = x
    for reader in place.readers:
        reader.input[1:] = y
    clip = helper.make_node(
        "Clip",
        [place.stored.output[0], "", three],
        list(place.target.output),
        name=place.sigmoid.name,
    )
    return {place.sigmoid.output[0]: [clip], place.target.output[0]: []}


def _as_product(place: _Place, constants: _Constants) -> dict[str, Nodes]:
    """x / 6 in steps of 1/255 around 128, where the integers end at 0 and 255, read from 0 on."""
    step = constants.add("hs_step", np.float32(1 / 255))
    sixth, own = (f"{place.sigmoid.output[0]}_{name}" for name in ("sixth", "own"))
    one_sixth = [
        constants.add("hs_255", np.uint8(255)),
        constants.add("hs_sixth", np.float32(1 / (6 * 255))),
    ]
    place.target.input[1:] = [step, constants.add("hs_half", np.uint8(128))]
    for reader in place.readers:
        reader.input[1:] = [step, constants.add("hs_none", np.uint8(0))]
    nodes = [
        helper.make_node("DequantizeLinear", list(place.source.input), [own], name=own),
        helper.make_node("DequantizeLinear", one_sixth, [sixth], name=sixth),
        helper.make_node("Mul", [own, sixth], list(place.sigmoid.output), name=place.sigmoid.name),
    ]
    return {place.sigmoid.output[0]: nodes}


def _of_torch(node: onnx.NodeProto) -> bool:
    given = {attribute.name: attribute.f for attribute in node.attribute}
    return bool(abs(given.get("alpha", 0.2) - 1 / 6) < 1e-6 and given.get("beta", 0.5) == 0.5)
