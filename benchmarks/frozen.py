"""A frozen backbone and the photos that its features are of, as the trainer would open them."""

import argparse

from serving.modelspec import Preprocessing
from trainer.backbones import Classifier, build
from trainer.config import TrainConfig
from trainer.data import PhotoData, load_data
from trainer.feature_cache import FeatureCache
from trainer.features import cache_of
from trainer.listing import find_photos


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
    data = load_data(config, find_photos(config.data), spec, lambda items, *_: items)
    classifier = build(config.backbone, len(data.labels), config.size, options.weights)
    return config, data, classifier, cache_of(config, classifier.backbone_digest, print)
