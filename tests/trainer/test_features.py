"""Frozen features: what they are of, and that the cache never changes them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from serving.modelspec import Preprocessing
from tests.trainer.conftest import MakePhotos
from trainer.backbones import Classifier, build
from trainer.config import TrainConfig
from trainer.data import PhotoData, load_data
from trainer.feature_cache import FeatureCache
from trainer.features import extract, plain
from trainer.tree import find_files


@pytest.fixture
def data(photos: MakePhotos) -> PhotoData:
    config = TrainConfig(data=str(photos()), name="x", size=48)
    spec = Preprocessing(size=48, interpolation="bilinear")
    return load_data(config, find_files(Path(config.data)), spec, lambda items, *_: items)


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return build("tiny", 2, 48).train()


def no_cache() -> FeatureCache:
    return FeatureCache(None, {})


def test_views_are_the_photo_as_served_and_its_mirror_image(
    data: PhotoData, classifier: Classifier
):
    members = data.splits["train"]
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    done: list[int] = []
    features = extract(classifier, members, data.squares, no_cache(), lambda n, _: done.append(n))
    assert features.shape == (len(members), 2, 160) and sum(done) == len(members)
    classifier.eval()
    with torch.no_grad():
        images = plain(data.squares, members)
        straight, mirrored = classifier.features(images), classifier.features(images.flip(3))
    assert features[:, 0] == pytest.approx(straight.numpy(), rel=1e-4, abs=1e-5)
    assert features[:, 1] == pytest.approx(mirrored.numpy(), rel=1e-4, abs=1e-5)
    after = classifier.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())  # running statistics too


def test_plain_is_the_pixels_of_the_server_over_255(data: PhotoData):
    members = data.splits["train"][:2]
    images = plain(data.squares, members)
    pixels = np.stack(data.squares.get(members))
    assert images.permute(0, 2, 3, 1).numpy() == pytest.approx(pixels / 255, abs=1e-7)


def test_cached_features_are_the_same_and_the_net_is_not_run(
    data: PhotoData, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first_half, members = data.splits["train"][:4], data.splits["train"]
    cache = FeatureCache(tmp_path / "cache", {"net": 1})
    fresh = extract(classifier, members, data.squares, no_cache(), lambda *_: None)
    extract(classifier, first_half, data.squares, cache, lambda *_: None)
    mixed = extract(classifier, members, data.squares, cache, lambda *_: None)
    assert mixed == pytest.approx(fresh, rel=1e-4, abs=1e-5)

    def never(_: torch.nn.Module) -> torch.nn.Module:
        raise AssertionError("the net was run")

    monkeypatch.setattr("trainer.features.folded", never)
    assert np.array_equal(extract(classifier, members, data.squares, cache, lambda *_: None), mixed)
    with pytest.raises(AssertionError, match="the net was run"):
        other = FeatureCache(tmp_path / "cache", {"net": 2})
        extract(classifier, members, data.squares, other, lambda *_: None)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_cache_is_as_none(
    data: PhotoData, classifier: Classifier, tmp_path: Path, damage: str
):
    cache = FeatureCache(tmp_path, {})
    members = data.splits["train"]
    expected = extract(classifier, members, data.squares, cache, lambda *_: None)
    whole = cache.path.read_bytes()
    cache.path.write_bytes({"cut": whole[:-300], "text": b"spoilt", "empty": b""}[damage])
    assert cache.load() == {}
    again = extract(classifier, members, data.squares, cache, lambda *_: None)
    assert np.array_equal(again, expected)
    assert len(cache.load()) == len(members)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
