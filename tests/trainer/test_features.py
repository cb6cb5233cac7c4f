"""Frozen features: what they are of, and that the cache never changes them."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.modelspec import Preprocessing
from tests.trainer.conftest import MakePhotos
from trainer.activations import Activations
from trainer.backbones import Classifier, build
from trainer.config import TrainConfig
from trainer.console import Console, unshown
from trainer.data import PhotoData, load_data
from trainer.errors import FailedCheck
from trainer.feature_cache import FeatureCache
from trainer.features import cache_of, extract, plain
from trainer.learner import predict
from trainer.tree import find_files


@pytest.fixture
def data(photos: MakePhotos) -> PhotoData:
    config = TrainConfig(data=str(photos()), name="x", size=48)
    spec = Preprocessing(size=48, interpolation="bilinear")
    return load_data(config, find_files(Path(config.data)), spec, unshown)


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return build("tiny", 2, 48).train()


def no_cache() -> FeatureCache:
    return FeatureCache(None, {}, print)


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


def test_a_log_says_once_that_the_features_are_there(
    data: PhotoData, classifier: Classifier, capsys: pytest.CaptureFixture[str]
):
    members = data.splits["train"]
    with Console(to_stderr=False).bar("Features", len(members)) as advance:
        extract(classifier, members, data.squares, no_cache(), advance)
    assert capsys.readouterr().out.count(f"Features: {len(members)}/{len(members)}") == 1


def test_plain_is_the_pixels_of_the_server_over_255(data: PhotoData):
    members = data.splits["train"][:2]
    images = plain(data.squares, members)
    pixels = np.stack(data.squares.get(members))
    assert images.permute(0, 2, 3, 1).numpy() == pytest.approx(pixels / 255, abs=1e-7)


def test_cached_features_are_the_same_and_the_net_is_not_run(
    data: PhotoData, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first_half, members = data.splits["train"][:4], data.splits["train"]
    cache = FeatureCache(tmp_path / "cache", {"net": 1}, print)
    fresh = extract(classifier, members, data.squares, no_cache(), lambda *_: None)
    extract(classifier, first_half, data.squares, cache, lambda *_: None)
    mixed = extract(classifier, members, data.squares, cache, lambda *_: None)
    assert mixed == pytest.approx(fresh, rel=1e-4, abs=1e-5)

    def never(_: torch.nn.Module) -> torch.nn.Module:
        raise AssertionError("the net was run")

    monkeypatch.setattr("trainer.features.folded", never)
    assert np.array_equal(extract(classifier, members, data.squares, cache, lambda *_: None), mixed)
    with pytest.raises(AssertionError, match="the net was run"):
        other = FeatureCache(tmp_path / "cache", {"net": 2}, print)
        extract(classifier, members, data.squares, other, lambda *_: None)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "method"])
def test_a_damaged_cache_is_as_none(
    data: PhotoData, classifier: Classifier, tmp_path: Path, damage: str
):
    said: list[str] = []
    cache = FeatureCache(tmp_path, {}, said.append)
    members = data.splits["train"]
    expected = extract(classifier, members, data.squares, cache, lambda *_: None)
    whole = cache.path.read_bytes()
    method = bytearray(whole)
    method[method.index(b"PK\x01\x02") + 10] = 99  # of compression: there is none such
    damaged = {"cut": whole[:-300], "text": b"spoilt", "empty": b"", "method": bytes(method)}
    cache.path.write_bytes(damaged[damage])
    assert cache.load() == {}
    (line,) = said
    assert str(cache.path) in line and line.endswith("what it kept is made again")
    again = extract(classifier, members, data.squares, cache, lambda *_: None)
    assert np.array_equal(again, expected)
    assert len(cache.load()) == len(members)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_another_pillow_or_code_of_ours_finds_no_features(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = TrainConfig(data="photos", name="x", cache=str(tmp_path))

    def kept_at() -> Path:
        return cache_of(config, classifier, lambda: "weights", "cpu", pytest.fail).path

    here = kept_at()
    assert kept_at() == here
    with monkeypatch.context() as other:  # the net is folded in another way, say
        (tmp_path / "trainer").mkdir()
        (tmp_path / "trainer/folding.py").write_text("# of another release")
        other.setattr("trainer.software.__file__", str(tmp_path / "trainer/software.py"))
        assert kept_at() != here
    with monkeypatch.context() as other:
        other.setattr("trainer.graph_cache.software", lambda _: {"pillow": "99.0.0"})
        assert kept_at() != here
    (tmp_path / "preprocess.py").write_text("# of another release")
    monkeypatch.setattr("serving.preprocess.__file__", str(tmp_path / "preprocess.py"))
    assert kept_at() != here


def test_features_that_are_not_finite_are_not_kept(
    data: PhotoData, classifier: Classifier, tmp_path: Path
):
    cache = FeatureCache(tmp_path, {}, pytest.fail)
    list(classifier.backbone.parameters())[-1].data[0] = torch.nan  # of one column
    with pytest.raises(FailedCheck, match="features that are not finite"):
        extract(classifier, data.splits["train"], data.squares, cache, lambda *_: None)
    assert cache.load() == {}


def test_a_cache_that_can_not_be_written_is_a_warning(
    data: PhotoData, classifier: Classifier, tmp_path: Path
):
    (tmp_path / "file").touch()
    said: list[str] = []
    cache = FeatureCache(tmp_path / "file", {}, said.append)
    members = data.splits["train"]
    features = extract(classifier, members, data.squares, cache, lambda *_: None)
    assert len(features) == len(members)
    assert str(cache.path) in said[-1] and "the next run makes again what" in said[-1]


def test_what_a_killed_process_has_left_in_the_cache_is_removed(tmp_path: Path):
    cache = FeatureCache(tmp_path, {}, pytest.fail)
    assert cache.path is not None
    left, of_others = (tmp_path / f".{name}-x.tmp" for name in (cache.path.name, "features-0.npz"))
    for path in (left, of_others):
        path.touch()
        os.utime(path, (0, 0))
    cache.save({"0" * 64: np.zeros((2, 3), np.float32)})
    assert sorted(tmp_path.iterdir()) == sorted([of_others, cache.path])


def test_what_no_run_has_used_for_long_makes_room(tmp_path: Path):
    def cache(seed: int) -> FeatureCache:
        return FeatureCache(tmp_path, {"weights": seed}, pytest.fail)

    some = {"photo": np.zeros((2, 3), np.float32)}
    for seed in (0, 1):
        cache(seed).save(some)
    others = [tmp_path / "features-of-my-own.npz", tmp_path / "graph-0.bin"]
    for path in others:
        path.write_bytes(b"")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert cache(1).load().keys() == some.keys()  # which uses it
    cache(2).save(some)
    assert set(tmp_path.iterdir()) == {cache(1).path, cache(2).path, *others}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_what_another_user_has_in_a_shared_cache_is_in_nobodys_way():
    """As in /tmp, where nobody can remove the files of others."""
    nobody, some = 65534, {"photo": np.zeros((2, 3), np.float32)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o1777)

        def cache(seed: int) -> FeatureCache:
            return FeatureCache(folder, {"weights": seed}, pytest.fail)

        for seed in range(8):  # a folder names them in no order
            cache(seed).save(some)
            os.chown(cache(seed).path, *(2 * [0 if seed % 2 else nobody]))
        for path in folder.iterdir():
            os.utime(path, (0, 0))
        os.seteuid(nobody)
        try:
            cache(8).save(some)
        finally:
            os.seteuid(0)
        assert set(folder.iterdir()) == {cache(seed).path for seed in (1, 3, 5, 7, 8)}


class Tight(torch.nn.Linear):
    """torch's own error; what raises it here stands for a GPU with room for three photos."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(inputs)


def test_where_memory_runs_out_features_and_answers_are_computed_in_parts(
    data: PhotoData, classifier: Classifier
):
    members = data.splits["train"]
    tight = torch.nn.Sequential(classifier.backbone, Tight(160, 160))
    small = Classifier(tight, torch.nn.Linear(160, 2), "head").eval()
    with torch.no_grad():
        some = [classifier.features(plain(data.squares, [p])) for p in members]
        expected = small.backbone[1](torch.cat(some[:2]))
    features = extract(small, members, data.squares, no_cache(), lambda *_: None)
    assert features[:2, 0] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)

    kept = Activations(tight, lambda photos, _: small.normalise(plain(data.squares, photos)))
    assert kept.get(members, [0] * len(members)).numpy() == pytest.approx(
        features[:, 0], rel=1e-4, abs=1e-5
    )
    whole = Activations(torch.nn.Identity(), lambda photos, _: plain(data.squares, photos))
    answers = predict(small, whole, members, 2)
    with torch.no_grad():
        expected = small.head(torch.from_numpy(features[:, 0]))
    assert answers == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)
