"""A tiny but real version of a model, made with onnx alone: no torch, a few milliseconds.

The graph divides the pixels by 255, normalises, averages 4 x 4 patches, applies a seeded linear
layer and a softmax. `logits_of` computes the same in numpy, as an oracle of its own. A familiar one
also says how like grey a picture is; see `familiarity_of`.
"""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.modelspec import (
    FAMILIARITY,
    FAMILIARITY_FILE,
    SCHEMA_VERSION,
    Dataset,
    Familiarity,
    FileEntry,
    Manifest,
    Metrics,
    Normalisation,
    Parity,
    Preprocessing,
    Variant,
)
from serving.repository import Repository

OPSET = 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCHES = 4  # a side
LABELS = ("cat", "dog")
# Mean squares of the normalised patches, the distance from grey: noise has 0.1, black and white 4.
KNOWN = np.linspace(0, 1, 99, dtype=np.float32)
FAMILIARITY_OF_TINY = Familiarity(photos=99, threshold=0.01, unfamiliar={"fp32": 0.0})


def linear_layer(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 [3 * PATCHES**2, K] and bias float32 [K]; the outputs spread by about 3."""
    generator = np.random.default_rng(seed)
    features = 3 * PATCHES**2
    weights = generator.normal(0, 3 / np.sqrt(features), (features, classes))
    bias = generator.normal(0, 0.1, classes)
    return weights.astype(np.float32), bias.astype(np.float32)


def tiny_model(
    classes: int = 2, size: int = 32, seed: int = 0, *, familiar: bool = False
) -> onnx.ModelProto:
    """uint8 [N, S, S, 3] -> `probabilities` and `logits`, float32 [N, K]; `familiarity` [N, 1]."""
    weights, bias = linear_layer(classes, seed)
    side = size // PATCHES
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Transpose", ["normal"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["planes"], ["pooled"], kernel_shape=[side, side], strides=[side, side]
        ),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    constants = {
        "full": np.float32(255),
        "mean": np.array(MEAN, np.float32),
        "std": np.array(STD, np.float32),
        "weights": weights,
        "bias": bias,
    }
    outputs = [("probabilities", classes), ("logits", classes)]
    if familiar:
        nodes += [
            helper.make_node("Mul", ["features", "features"], ["squares"]),
            helper.make_node("ReduceMean", ["squares", "last"], ["distance"], keepdims=1),
            helper.make_node("GreaterOrEqual", ["known", "distance"], ["farther"]),
            helper.make_node("Cast", ["farther"], ["ones"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["ones", "last"], ["count"], keepdims=1),
            helper.make_node("Add", ["count", "itself"], ["more"]),
            helper.make_node("Div", ["more", "all"], [FAMILIARITY]),
        ]
        constants |= {
            "last": np.array([1]),
            "known": KNOWN[None],
            "itself": np.float32(1),
            "all": np.float32(len(KNOWN) + 1),
        }
        outputs.append((FAMILIARITY, 1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
            for name, width in outputs
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="tests"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def in_fp16_as_vits_are(model: onnx.ModelProto) -> onnx.ModelProto:
    """A tiny model that multiplies a transposed fp16 tensor on its way, by one: see
    SKIPPED_OPTIMIZERS."""
    graph = model.graph
    (head,) = (node for node in graph.node if node.op_type == "Gemm")
    features, weights = head.input[0], head.input[1]
    width = next(i.dims[0] for i in graph.initializer if i.name == weights)
    head.input[0] = "as_before"
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "second"))
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    graph.initializer.append(numpy_helper.from_array(np.eye(width, dtype=np.float16), "one"))
    steps = [
        helper.make_node("Cast", [features], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Unsqueeze", ["half", "second"], ["tokens"]),
        helper.make_node("Transpose", ["tokens"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "one"], ["multiplied"]),
        helper.make_node("Squeeze", ["multiplied", "first"], ["squeezed"]),
        helper.make_node("Cast", ["squeezed"], ["as_before"], to=TensorProto.FLOAT),
    ]
    place = list(graph.node).index(head)
    for offset, step in enumerate(steps):
        graph.node.insert(place + offset, step)
    onnx.checker.check_model(model, full_check=True)
    return model


def logits_of(images: np.ndarray, classes: int = 2, seed: int = 0) -> np.ndarray:
    """What tiny_model must answer: uint8 [n, S, S, 3] -> float32 [n, K], in float64 on the way."""
    weights, bias = linear_layer(classes, seed)
    return (_features(images) @ weights + bias).astype(np.float32)


def familiarity_of(images: np.ndarray) -> np.ndarray:
    """What a familiar tiny_model must answer: uint8 [n, S, S, 3] -> float32 [n, 1]."""
    distances = (_features(images) ** 2).mean(axis=1, keepdims=True)
    count: np.ndarray = (distances <= KNOWN).sum(axis=1, keepdims=True)
    return ((1 + count) / (1 + len(KNOWN))).astype(np.float32)


def _features(images: np.ndarray) -> np.ndarray:
    n, size = images.shape[:2]
    side = size // PATCHES
    normal = (images / 255.0 - MEAN) / STD
    patches = normal.reshape(n, PATCHES, side, PATCHES, side, 3).mean(axis=(2, 4))
    features: np.ndarray = patches.transpose(0, 3, 1, 2).reshape(n, -1)
    return features


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def golden_of(classes: int = 2, size: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    images = np.random.default_rng(seed + 1).integers(0, 256, (4, size, size, 3), np.uint8)
    logits = logits_of(images, classes, seed)
    return {
        "images": images,
        "logits": logits,
        "probabilities": softmax(logits),
        FAMILIARITY: familiarity_of(images),
    }


def build_version(
    root: Path,
    name: str,
    labels: Sequence[str] = LABELS,
    size: int = 32,
    seed: int = 0,
    *,
    model: onnx.ModelProto | bytes | None = None,
    golden: dict[str, np.ndarray] | None = None,
    extra_files: dict[str, bytes] | None = None,
    familiar: bool = False,
) -> int:
    """Publish a tiny version and return its number; `model` and `golden` replace the sound ones.

    familiar: it says how familiar a picture is. A model.int8.onnx or model.fp16.onnx among
    `extra_files` is a variant.
    """
    repository = Repository(root)
    if model is None:
        model = tiny_model(len(labels), size, seed, familiar=familiar)
    if familiar:
        told = json.dumps(dataclasses.asdict(FAMILIARITY_OF_TINY)).encode()
        extra_files = {FAMILIARITY_FILE: told, **(extra_files or {})}
    with repository.staging(name) as folder:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (folder / "model.onnx").write_bytes(data)
        archive = io.BytesIO()
        np.savez(archive, **(golden or golden_of(len(labels), size, seed)))
        (folder / "golden.npz").write_bytes(archive.getvalue())
        for file, content in (extra_files or {}).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return repository.publish(
            name,
            folder,
            lambda version, files: manifest_of(name, version, tuple(labels), size, files),
        ).version


def manifest_of(
    name: str, version: int, labels: tuple[str, ...], size: int, files: dict[str, FileEntry]
) -> Manifest:
    metrics = Metrics(
        photos=10,
        correct=9,
        accuracy=0.9,
        accuracy_low=0.596,
        accuracy_high=0.982,
        nll=0.3,
        ece=0.05,
        per_class={label: (0, 0) for label in labels} | {labels[0]: (9, 10)},
    )
    parity = Parity(
        photos=10,
        batch_sizes=(1, 2, 7),
        logit_scale=3.0,
        max_logit_error=1e-6,
        top1_agreement=1.0,
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        version=version,
        created="2026-01-01T00:00:00+00:00",
        backbone="tiny",
        labels=labels,
        preprocessing=Preprocessing(size=size, interpolation="bilinear"),
        normalisation=Normalisation(mean=MEAN, std=STD),
        temperature=1.0,
        opset=OPSET,
        dataset=Dataset(digest="0" * 64, counts={"test": dict.fromkeys(labels, 5)}),
        configuration={"backbone": "tiny"},
        training_seconds=0.0,
        variants={
            precision: Variant(file=file, metrics=metrics, parity=parity, latency_ms=0.1)
            for precision in ("fp32", "int8", "fp16")
            if (file := f"model.{precision}.onnx".replace(".fp32", "")) in files
        },
        software={"onnx": onnx.__version__},
        files=files,
    )


def attach_trust(
    models: Path, name: str, version: int, *thresholds: tuple[float, float], photos: int = 64
) -> None:
    """An analysis that found for fp32: (accuracy, from which probability on)."""
    summary = {
        "photos": photos, "clean_accuracy": 0.9, "robust_accuracy": [], "corruption_accuracy": 0.5,
        "created": "2026-01-02T00:00:00+00:00",
    }  # fmt: skip
    rows = [
        {"precision": "fp32", "accuracy": accuracy, "probability": probability, "answered": 0.5}
        for accuracy, probability in thresholds
    ]
    trust = {"photos": 400, "confidence": 0.95, "thresholds": rows}
    repository = Repository(models)
    with repository.staging(name) as folder:
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "trust.json").write_text(json.dumps(trust))
        repository.attach_analysis(name, version, folder)
