"""Real photos and real ImageNet weights, where they are at hand beside the checkout."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from serving.engine import load_engine
from serving.preprocess import preprocess
from serving.repository import Repository
from trainer.analysis.strangers import STRANGERS
from trainer.train import main


@pytest.fixture
def weights(shared_data: Path) -> Path:
    return shared_data / "weights" / "mobilenet_v2.pth"


def train(data: Path, weights: Path, out: Path, *more: str) -> Repository:
    arguments = [*("--data", data, "--name", "real", "--out", out, "--weights", weights), *more]
    assert main([str(argument) for argument in arguments]) == 0
    return Repository(out)


def test_a_probe_on_a_few_photos_tells_cats_from_dogs(
    shared_data: Path, weights: Path, tmp_path: Path
):
    for split, count in (("train", 14), ("test", 12)):
        for label in ("cats", "dogs"):
            folder = tmp_path / "few" / split / label
            folder.mkdir(parents=True)
            every = sorted((shared_data / "cats_vs_dogs" / split / label).iterdir())
            for path in every[:: len(every) // count][:count]:
                shutil.copy(path, folder)
    out = tmp_path / "models"
    repository = train(tmp_path / "few", weights, out, "--epochs", "0", "--size", "128")
    assert repository.verify("real", 1) == []
    manifest = repository.manifest("real", 1)
    fp32 = manifest.variants["fp32"]
    assert fp32.metrics.photos == 24 and fp32.metrics.accuracy >= 0.75
    assert fp32.parity.max_logit_error <= 1e-5 * fp32.parity.logit_scale
    told = repository.familiarity(manifest)
    assert told is not None and told.photos == 28 and told.unfamiliar["fp32"] <= 0.1


def shares_of_strangers(repository: Repository, folder: Path) -> dict[str, float]:
    """Share of drawn pictures of nothing that are unfamiliar, by kind; of the photos few are."""
    engine = load_engine(repository, "real", 1, device="cpu", cores=2)
    told = engine.familiarity
    assert told is not None and told.unfamiliar["fp32"] <= 0.04
    spec = engine.manifest.preprocessing
    squares = [preprocess(path.read_bytes(), spec) for path in sorted(folder.rglob("*.jpg"))[:24]]
    generator = np.random.default_rng(0)
    shares = {}
    for kind in ("noise", "stripes", "clouds"):
        strangers = np.stack([STRANGERS[kind](square, generator) for square in squares])
        shares[kind] = np.mean([told.tells(value) for value in engine.run(strangers)[2].flat])
    return {kind: float(share) for kind, share in shares.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("cats_vs_dogs", 0.98), ("pets", 0.88)])
def test_accuracy_on_the_test_photos(
    shared_data: Path, weights: Path, tmp_path: Path, name: str, least: float
):
    repository = train(shared_data / name, weights, tmp_path / "models")
    manifest = repository.manifest("real", 1)
    assert manifest.variants["fp32"].metrics.accuracy >= least
    strange = shares_of_strangers(repository, shared_data / name / "test")
    assert min(strange.values()) > 0.9, strange
