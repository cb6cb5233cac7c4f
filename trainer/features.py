"""Features of a frozen net, computed once for each photo and view."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer.backbones import Classifier
from trainer.config import TrainConfig
from trainer.distributed import ALONE, World
from trainer.errors import FailedCheck
from trainer.feature_cache import FeatureCache
from trainer.folding import folded
from trainer.graph_cache import backbone_key
from trainer.memory import halved
from trainer.pictures import Photo, Pictures, Pixels

Floats = npt.NDArray[np.float32]
FeatureNet = Callable[[Pixels], Floats]  # [n, S, S, 3] -> pooled vectors [n, F]

VIEWS = ("plain", "mirrored")  # of a net that does not see both ways itself
_BATCH = 32


def plain(squares: Pictures, photos: Sequence[Photo]) -> torch.Tensor:
    """Photos as served: float32 [n, 3, S, S] in [0, 1], channels last in memory."""
    return _planes(torch.from_numpy(np.stack(squares.get(photos))))


def in_torch(classifier: Classifier) -> FeatureNet:
    """The backbone of `classifier` where its weights are; as many at once as memory takes."""
    device = classifier.head.weight.device
    net = folded(classifier.backbone)

    def some(images: torch.Tensor) -> torch.Tensor:
        normal = classifier.normalise(_planes(images.to(device)))
        return classifier.both_ways(net, normal).float().cpu()

    def run(images: Pixels) -> Floats:
        with torch.inference_mode():
            vectors: Floats = halved(some, torch.from_numpy(images)).numpy()
        return vectors

    return run


def cache_of(
    config: TrainConfig,
    classifier: Classifier,
    weights: Callable[[], str],
    by: str,
    say: Callable[[str], None],
) -> FeatureCache:
    """What `config.cache` keeps of the backbone, with these weights and this preprocessing.

    weights: their digest, which of many takes its time. by: what computes them, as each rounds in
    its own way, and so do its releases and those of ours: a head is not to depend on the runs
    before it.
    """
    if config.cache is None:
        return FeatureCache(None, {}, say)
    key = {
        **backbone_key(config, classifier, weights()),
        "by": by,
        "interpolation": config.interpolation,
        "views": VIEWS,
    }
    return FeatureCache(Path(config.cache), key, say)


def extract(
    classifier: Classifier,
    photos: Sequence[Photo],
    squares: Pictures,
    cache: FeatureCache,
    advance: Callable[[int, str], None],
    open_net: Callable[[Classifier], FeatureNet] = in_torch,
    world: World = ALONE,
) -> Floats:
    """Pooled vectors [n, views, F] of what the server sees of each photo, and of its mirror image;
    one view where the net sees both itself.

    `advance` is told how many photos are done. What lies in the leader's `cache` is not computed
    again; where all does, no net is opened. Each process computes its share of the rest. Raises
    FailedCheck where a feature is not finite.
    """
    known = world.of_leader(cache.load)
    todo = [p for p in photos if p.digest not in known]
    advance(len(photos) - len(todo), "")
    mine = world.share(todo)
    views = 1 if classifier.mirror else len(VIEWS)
    parts = [np.empty((0, views, classifier.head.in_features), np.float32)]
    if mine:
        net = open_net(classifier.eval())
        for start in range(0, len(mine), _BATCH):
            batch = mine[start : start + _BATCH]
            images = np.stack(squares.get(batch))
            seen = (images, np.ascontiguousarray(images[:, :, ::-1]))[:views]
            parts.append(np.stack([net(view) for view in seen], axis=1))
            advance(len(batch), "")
    new = world.join(np.concatenate(parts))
    known.update(zip((p.digest for p in todo), new, strict=True))
    if others := len(todo) - len(mine):
        advance(others, "")
    features = np.stack([known[photo.digest] for photo in photos])
    if not np.isfinite(features).all():
        raise FailedCheck(
            "the frozen backbone gives features that are not finite: its weights are damaged"
        )
    if todo and world.leads:  # nothing that ends every run to come
        cache.save(known)
    return features


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(0, 3, 1, 2).float().div_(255)
