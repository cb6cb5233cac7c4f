"""The exported graph of a frozen backbone on disk: the next head on it waits for no exporter."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import onnx

from trainer.backbones import Classifier
from trainer.cached_file import NOTHING_KEPT, CachedFile
from trainer.config import TrainConfig
from trainer.software import digest_code, software

_DIGEST = hashlib.sha256().digest_size


def graph_cache_of(
    config: TrainConfig,
    classifier: Classifier,
    weights: Callable[[], str],
    say: Callable[[str], None],
) -> CachedFile:
    """What `config.cache` keeps of this backbone, as these packages and this code export it.

    weights: the digest of its own.
    """
    if config.cache is None:  # digests of all weights and of the code take their time
        return NOTHING_KEPT
    key = backbone_key(config, classifier, weights())
    return CachedFile(Path(config.cache), "graph.bin", key, say)


def backbone_key(config: TrainConfig, classifier: Classifier, weights: str) -> dict[str, object]:
    """All that the frozen backbone is, and what makes its graph and its features of it."""
    return {
        "backbone": config.backbone,
        "weights": weights,
        "normalisation": repr(classifier.normalisation),
        "mirror": classifier.mirror,
        "size": config.size,
        "software": software(config.backbone),
        "code": digest_code(),
    }


def load_graph(cache: CachedFile) -> onnx.ModelProto | None:
    """What is kept, to the bit; None if nothing is, or if the file is damaged."""
    return cache.read(_parse)


def save_graph(cache: CachedFile, graph: onnx.ModelProto) -> None:
    def write(file: IO[bytes]) -> None:
        data = graph.SerializeToString()
        file.writelines([hashlib.sha256(data).digest(), data])

    cache.write(write)


def _parse(file: IO[bytes]) -> onnx.ModelProto:
    digest, data = file.read(_DIGEST), file.read()
    if hashlib.sha256(data).digest() != digest:
        raise ValueError("it is damaged")
    return onnx.ModelProto.FromString(data)
