"""How like the photos learnt from a picture is: the maths, in the file, and of whole trainings."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import mahalanobis

from serving.engine import Engine, load_engine
from serving.preprocess import preprocess
from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer.backbones import Calibrated, build
from trainer.console import Console
from trainer.export import OPSET
from trainer.exporter import HEAD, Exporter, feature_runner
from trainer.familiar_graph import attach
from trainer.familiarise import Familiarised
from trainer.familiarity import (
    familiarity,
    fit_gaussian,
    judges_by_folds,
    judges_of,
    threshold_of,
)
from trainer.half import to_half
from trainer.int8 import quantize_within
from trainer.onnx_runner import OnnxRunner
from trainer.pictures import Photo
from trainer.train import main

WIDTH = 24
AXES = np.random.default_rng(5).normal(0, 1, (WIDTH, WIDTH)) * np.geomspace(3, 0.05, WIDTH)


def drawn(count: int, seed: int, *, turned: float = 0.0) -> np.ndarray:
    """Features [n, F] around (4, 4, ...), or as far from there."""
    generator = np.random.default_rng(seed)
    features = 4 + generator.normal(0, 1, (count, WIDTH)) @ AXES.T / 4
    features[:, : WIDTH // 2] *= 1 - 2 * turned
    return features.astype(np.float32)


@pytest.mark.parametrize(("count", "directions"), [(400, 99), (400, 5), (16, 99)])
def test_the_distance_is_that_of_the_covariance_it_stands_for(count: int, directions: int) -> None:
    learnt = drawn(count, 0)
    gaussian = fit_gaussian(learnt, directions)
    kept = min(directions, count - 1, WIDTH)
    assert gaussian.directions.shape == (WIDTH, kept)
    overlaps = gaussian.directions.T @ gaussian.directions
    np.testing.assert_allclose(overlaps, np.eye(kept), atol=1e-9)
    directed = learnt / np.linalg.norm(learnt, axis=1, keepdims=True)
    away = directed - directed.mean(axis=0)
    covariance = away.T @ away / count
    ball = np.trace(covariance) / WIDTH * np.eye(WIDTH)
    of_each = [np.square(np.outer(row, row) - covariance).sum() for row in away]
    shrinkage = np.sum(of_each) / count**2 / np.square(covariance - ball).sum()
    assert 0 < shrinkage < 1
    values, vectors = np.linalg.eigh(covariance)
    if kept < WIDTH:
        values[: WIDTH - kept] = values[: WIDTH - kept].mean()
    shrunk = (1 - shrinkage) * (vectors * values @ vectors.T) + shrinkage * ball
    inverse = np.linalg.inv(shrunk)
    new = 7 * drawn(5, 1)  # its length does not count
    for row, distance in zip(new, gaussian.distances(new), strict=True):
        expected = mahalanobis(row / np.linalg.norm(row), directed.mean(axis=0), inverse)
        assert distance == pytest.approx(expected**2, rel=1e-4)


@pytest.mark.parametrize(("count", "folds"), [(300, 5), (WIDTH, 5)])
def test_of_ordinary_photos_as_few_are_unfamiliar_as_is_said(count: int, folds: int) -> None:
    of_new = []
    for seed in range(60):  # that so many are so is on average over what was learnt from
        learnt = drawn(count, seed)
        judges = judges_by_folds(learnt, np.arange(count) % folds)
        known, final = judges.distances(learnt), judges.gaussians[0]
        of_new.append(familiarity(final.distances(drawn(1000, 100 + seed)), known))
        strange = familiarity(final.distances(drawn(50, 200 + seed, turned=1.0)), known)
        assert (strange == 1 / (count + 1)).all()
    for level in (0.01, 0.05, 0.2, 0.5):
        steps = np.floor(level * (count + 1) + 1e-9) / (count + 1)
        assert np.mean(np.array(of_new) <= level + 1e-9) == pytest.approx(steps, rel=0.25)


def test_no_photo_is_judged_by_what_has_seen_it() -> None:
    learnt = drawn(120, 0)
    folds = np.arange(120) % 5
    learnt[7] = drawn(1, 3, turned=1.0)[0]
    distances = judges_by_folds(learnt, folds).distances(learnt)
    others = fit_gaussian(learnt[folds != folds[7]])
    assert distances[7] == pytest.approx(others.distances(learnt[7:8])[0])
    assert distances[7] > 3 * np.delete(distances, 7).max()
    itself = fit_gaussian(learnt)
    assert itself.distances(learnt[7:8])[0] < distances[7] / 2

    held = judges_of(learnt, 30)
    expected = fit_gaussian(learnt[:90]).distances(learnt[90:])
    np.testing.assert_allclose(held.distances(learnt[90:]), expected)


def test_a_share_of_the_photos_that_are_as_far() -> None:
    known = np.array([4.0, 1.0, 3.0, 2.0])
    shares = familiarity(np.array([0.5, 2.0, 3.5, 4.0, 4.1, np.nan]), known)
    np.testing.assert_allclose(shares, np.array([5, 4, 2, 2, 1, 1]) / 5)
    thresholds = [threshold_of(count, 0.01) for count in (24, 98, 99, 2000)]
    assert thresholds == [1 / 25, 1 / 99, 0.01, 0.01]
    assert threshold_of(24, 0.05) == 0.05


@pytest.mark.parametrize(
    "features", [np.ones((40, 8)), np.outer(range(1, 41), range(8)), np.zeros((40, 8))]
)
def test_features_of_which_nothing_can_be_said(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="all the same"):
        fit_gaussian(features, 9)


def test_a_file_of_each_precision_says_what_numpy_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build("tiny", 3, 48).eval()
    exported = Exporter(48, Console(to_stderr=False)).export(Calibrated(net, 1.3))
    path = tmp_path / "exported.onnx"
    onnx.save(exported, path)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 48, 48, 3), np.uint8)
    images[:, 8:40, 8:40] //= generator.integers(1, 9, (60, 1, 1, 1), np.uint8)
    images[-1] = 0
    (features,) = feature_runner(exported).run(images)
    with torch.inference_mode():
        planes = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        np.testing.assert_allclose(features, net.features(planes).numpy(), atol=1e-4)
    judges = judges_of(features, 20)
    known = judges.distances(features[40:])
    expected = familiarity(judges.gaussians[0].distances(features), known)
    targets = np.zeros(60, np.int64)
    for model, most in (
        (exported, 1e-6),
        (to_half(path), 2 / 21),
        (quantize_within(path, images[:16], images, targets, 1.0).model, 6 / 21),
    ):
        (before,) = OnnxRunner(model.SerializeToString(), ["logits"]).run(images)
        attach(model, judges.gaussians[0], known)
        told = OnnxRunner(model.SerializeToString(), ("logits", "familiarity"))
        for size in (1, 7):
            logits, got = told.run(images, size)
            assert got.shape == (60, 1) and got.dtype == np.float32
            # Of the others each is as far as itself, but for the rounding.
            assert np.abs(got[:40, 0] - expected[:40]).max() <= most
            np.testing.assert_allclose(logits, before, atol=2e-2)


def graph_of_head(width: int) -> onnx.ModelProto:
    """`image`, float32 [n, width], are the features themselves; one logit is their sum."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["image", f"{HEAD}.weight"], ["logits"], name="head")],
        "head",
        [helper.make_tensor_value_info("image", kind, ["batch", width])],
        [helper.make_tensor_value_info("logits", kind, ["batch", 1])],
        [onnx.numpy_helper.from_array(np.ones((width, 1), np.float32), f"{HEAD}.weight")],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def two_classes(within: float) -> tuple[np.ndarray, np.ndarray]:
    """Features of 500 photos, and of 30 of no class."""
    generator = np.random.default_rng(0)
    drawn = np.abs(generator.normal(2, 1, (32, 1280)))
    noise = within * generator.normal(0, 1, (500, 1280))
    return (drawn[np.arange(500) % 2] + noise).astype(np.float32), drawn[2:].astype(np.float32)


@pytest.mark.parametrize("within", [1e-4, 0.0])
def test_photos_of_a_class_may_be_as_one_to_the_net(within: float) -> None:
    features, strange = two_classes(within)
    judges = judges_of(features[:400], 100)
    (gaussian,), known = judges.gaussians, judges.distances(features[300:400])
    assert (known > 0).all()
    expected = familiarity(gaussian.distances(features[400:]), known)
    model = graph_of_head(1280)
    attach(model, gaussian, known)
    told = OnnxRunner(model.SerializeToString(), ["familiarity"])
    assert (told.run(strange)[0] == np.float32(1 / 101)).all()
    if within:
        assert np.abs(told.run(features[400:])[0][:, 0] - expected).max() <= 0.06


def test_no_number_on_the_way_is_too_large_for_16_bits(tmp_path: Path) -> None:
    """In which TensorRT may compute what comes between."""
    features, strange = two_classes(0.05)
    judges = judges_of(features[:400], 100)
    (gaussian,), known = judges.gaussians, judges.distances(features[300:400])
    assert gaussian.distances(strange).max() > np.finfo(np.float16).max
    model, path = graph_of_head(1280), tmp_path / "model.onnx"
    attach(model, gaussian, known)
    onnx.save(model, path)
    told = OnnxRunner(to_half(path).SerializeToString(), ["familiarity"])
    expected = familiarity(gaussian.distances(features[400:]), known)
    assert np.abs(told.run(features[400:])[0][:, 0] - expected).max() <= 0.1
    assert (told.run(strange)[0] == np.float32(1 / 101)).all()


def test_features_that_are_no_numbers_are_unfamiliar(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build("tiny", 3, 48).eval()
    exported = Exporter(48, Console(to_stderr=False)).export(Calibrated(net, 1.0))
    features = np.random.default_rng(0).normal(3, 1, (40, net.head.in_features))
    gaussian = fit_gaussian(features.astype(np.float32), 9)
    gaussian.centre[0] = np.nan
    attach(exported, gaussian, np.arange(9.0))
    runner = OnnxRunner(exported.SerializeToString(), ["familiarity"])
    (told,) = runner.run(np.zeros((2, 48, 48, 3), np.uint8))
    np.testing.assert_allclose(told, 0.1)


def engine_of(models: Path, name: str, precision: str = "fp32") -> Engine:
    return load_engine(Repository(models), name, 1, device="cpu", cores=2, precision=precision)


def train(data: Path, models: Path, *more: str) -> int:
    return main(
        [
            *("--data", str(data), "--name", "shapes", "--out", str(models), "--backbone", "tiny"),
            *("--weights", "none", "--size", "48", "--batch-size", "8", "--workers", "1", *more),
        ]
    )


def write_again(folder: Path) -> None:
    """Each photo below, in other bytes."""
    for path in sorted(folder.rglob("*.jpg")):
        Image.open(path).save(path.with_name(f"again-{path.name}"), quality=60)


def test_a_frozen_net_compares_with_all_photos_that_are_not_for_test(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, weights = tmp_path / "models", tmp_path / "tiny.pth"
    torch.manual_seed(0)
    torch.save(build("tiny", 2, 48).backbone.state_dict(), weights)
    data = photos(per_class=30, seed=3)
    write_again(data / "discs")
    more = ("--weights", str(weights), "--epochs", "0", "--int8", "--fp16", "--unfamiliar", "0.2")
    assert train(data, models, *more) == 0
    printed = capsys.readouterr().out
    told = Repository(models).familiarity(Repository(models).manifest("shapes", 1))
    split = json.loads((models / "shapes/1/split.json").read_bytes())
    assert told is not None
    learnt = [file for part in ("train", "val") for files in split[part].values() for file in files]
    different = len({file.replace("again-", "") for file in learnt})
    assert different - 9 < told.photos <= different < len(learnt)  # some discs are alike by chance
    assert told.threshold == 0.2
    assert told.unfamiliar.keys() == {"fp32", "int8", "fp16"}
    assert f"beside {told.photos} photos" in printed
    assert "plots/strangest.png" in Repository(models).manifest("shapes", 1).files
    tests = [data / file for label in split["test"] for file in split["test"][label]]
    for precision, share in told.unfamiliar.items():
        engine = engine_of(models, "shapes", precision)
        assert engine.familiarity == told
        squares = [preprocess(p.read_bytes(), engine.manifest.preprocessing) for p in tests]
        familiarities = engine.run(np.stack(squares))[2][:, 0].tolist()
        assert share == np.mean([told.tells(value) for value in familiarities]) < 0.4
        assert np.std(familiarities) > 0.01


def test_the_strangest_photos_are_those_that_are_farthest() -> None:
    compared = tuple(
        Photo(path=Path(f"{i}.jpg"), file=f"{i}.jpg", label=0, digest=str(i)) for i in range(40)
    )
    learnt = drawn(40, 0)
    learnt[[3, 31]] = drawn(2, 1, turned=1.0)
    judges = judges_by_folds(learnt, np.arange(40) % 5)
    known = judges.distances(learnt)
    told = Familiarised(judges=judges, compared=compared, known=known, look=lambda *_: learnt)
    shown = [photo.file for photo in told.strangest(18)]
    assert {*shown[:2]} == {"3.jpg", "31.jpg"} and len(shown) == 18


def test_a_net_that_has_learnt_compares_with_val(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, data = tmp_path / "models", tmp_path / "photos"
    for split, count in (("train", 24), ("val", 12), ("test", 8)):
        photos(name=f"photos/{split}", per_class=count, seed=count)
    write_again(data / "val/discs")
    assert train(data, models, "--epochs", "1") == 0
    told = Repository(models).familiarity(Repository(models).manifest("shapes", 1))
    assert told is not None and told.photos == 24
    engine = engine_of(models, "shapes")
    spec = engine.manifest.preprocessing
    val = [preprocess(path.read_bytes(), spec) for path in (data / "val").rglob("0*.jpg")]
    of_val = np.sort(engine.run(np.stack(val))[2][:, 0])
    # Each is as far as itself, and the farther ones; the rounding may take one away.
    assert np.abs(of_val - np.arange(2, 26) / 25).max() <= 1 / 25 + 1e-6


def test_of_few_photos_it_is_left_out_and_said(
    photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    assert train(photos(per_class=12), models, "--epochs", "1") == 0
    printed = capsys.readouterr().out
    assert "will not say how familiar a picture is: " in printed
    assert "photos to compare with are fewer than 20" in printed
    assert engine_of(models, "shapes").familiarity is None
    assert "familiarity.json" not in Repository(models).manifest("shapes", 1).files
