"""A frozen backbone and the photos that its features are of, as the trainer would open them."""

import argparse

import numpy as np

from serving.modelspec import Preprocessing
from trainer.backbones import Classifier, build
from trainer.config import TrainConfig
from trainer.console import unshown
from trainer.data import PhotoData, load_data, targets_of
from trainer.feature_cache import FeatureCache
from trainer.features import cache_of, extract
from trainer.listing import find_photos
from trainer.metrics import Floats, accuracy, nll
from trainer.probe import Solver, fit_head, fit_probe
from trainer.split import Ints


def parser_of(description: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """With the flags that `opened` heeds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--cache")
    return parser


def opened(
    folder: str, size: int, options: argparse.Namespace
) -> tuple[TrainConfig, PhotoData, Classifier, FeatureCache]:
    config = TrainConfig(
        data=folder, name="benchmark", backbone=options.backbone, size=size, cache=options.cache
    )
    spec = Preprocessing(size=config.size, interpolation=config.interpolation)
    data = load_data(config, find_photos(config.data), spec, unshown)
    classifier = build(config.backbone, len(data.labels), config.size, options.weights)
    cache = cache_of(config, classifier, classifier.backbone_digest, "cpu", print)
    return config, data, classifier, cache


def known_of(
    data: PhotoData, classifier: Classifier, kept: FeatureCache
) -> tuple[Floats, Ints, int]:
    """Of train and val: features [n, views, F], labels [n], and how many classes there are."""
    photos = data.learnt_from
    targets = targets_of(photos)
    features = extract(classifier, photos, data.squares, kept, lambda *_: None)
    return features, targets, len(data.labels)


def out_of_fold(
    known: tuple[Floats, Ints, int], seeds: int, solve: Solver = fit_head
) -> tuple[float, float]:
    """(accuracy, nats), each photo judged by a head that has not seen it; means over the seeds."""
    features, targets, classes = known
    found = []
    for seed in range(seeds):
        probe = fit_probe(features, targets, classes, np.random.default_rng(seed), solve=solve)
        found.append((accuracy(probe.out_of_fold, targets), nll(probe.out_of_fold, targets)))
    right, loss = np.mean(found, axis=0)
    return float(right), float(loss)
