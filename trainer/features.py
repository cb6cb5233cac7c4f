"""Features of a frozen net, computed once for each photo and view."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer.backbones import Classifier
from trainer.config import TrainConfig
from trainer.errors import FailedCheck
from trainer.feature_cache import FeatureCache
from trainer.folding import folded
from trainer.pictures import Photo, Pictures
from trainer.weights import digest_state

Floats = npt.NDArray[np.float32]

VIEWS = ("plain", "mirrored")
_BATCH = 32


def plain(squares: Pictures, photos: Sequence[Photo]) -> torch.Tensor:
    """Photos as served: float32 [n, 3, S, S] in [0, 1], channels last in memory."""
    return torch.from_numpy(np.stack(squares.get(photos))).permute(0, 3, 1, 2).float().div_(255)


def cache_of(config: TrainConfig, classifier: Classifier) -> FeatureCache:
    """What `config.cache` keeps of this backbone, with these weights and this preprocessing."""
    key = {
        "backbone": config.backbone,
        "weights": digest_state(classifier.backbone.state_dict()),
        "size": config.size,
        "interpolation": config.interpolation,
        "views": VIEWS,
    }
    return FeatureCache(None if config.cache is None else Path(config.cache), key)


def extract(
    classifier: Classifier,
    photos: Sequence[Photo],
    squares: Pictures,
    cache: FeatureCache,
    advance: Callable[[int, str], None],
    views: Sequence[str] = VIEWS,
) -> Floats:
    """Pooled vectors [n, views, F] of what the server sees of each photo, and of its mirror image.

    `advance` is told how many photos are done. What lies in `cache` is not computed again. Raises
    FailedCheck where a feature is not finite.
    """
    known = cache.load()
    todo = [p for p in photos if p.digest not in known]
    advance(len(photos) - len(todo), "")
    if todo:
        for batch, vectors in _compute(classifier, todo, squares, views):
            known.update(zip((p.digest for p in batch), vectors, strict=True))
            advance(len(batch), "")
        cache.save(known)
    features = np.stack([known[photo.digest] for photo in photos])
    if not np.isfinite(features).all():
        raise FailedCheck(
            "the frozen backbone gives features that are not finite: its weights are damaged"
        )
    return features


def _compute(
    classifier: Classifier, photos: Sequence[Photo], squares: Pictures, views: Sequence[str]
) -> Iterator[tuple[Sequence[Photo], Floats]]:
    device = classifier.head.weight.device
    classifier.eval()
    net = folded(classifier.backbone)
    for start in range(0, len(photos), _BATCH):
        batch = photos[start : start + _BATCH]
        images = classifier.normalise(plain(squares, batch).to(device))
        with torch.inference_mode():
            seen = [net(images.flip(3) if view == "mirrored" else images) for view in views]
        yield batch, torch.stack(seen, dim=1).float().cpu().numpy()
