"""Training on shards is training on the photos that are in them."""

import json
from pathlib import Path

import pytest

from serving.repository import Repository
from tests.trainer.conftest import MakePhotos
from trainer.analysis.photos import load_photos
from trainer.make_shards import main as make_shards
from trainer.train import main as train


def test_weights_splits_and_digests_are_those_of_the_folder(
    photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "cache"))
    folder, shards = photos("photos", per_class=10), tmp_path / "shapes"
    assert make_shards(["--data", str(folder), "--out", str(shards)]) == 0
    command = ["--weights", "none", "--backbone", "tiny", "--size", "32", "--epochs", "1"]
    command += ["--batch-size", "8", "--out", str(tmp_path / "models")]
    assert train([*command, "--data", f"{shards}/photos-{{000000..000000}}.tar"]) == 0
    assert train([*command, "--data", str(folder)]) == 0
    repository = Repository(tmp_path / "models")
    there, here = (repository.manifest("photos", number) for number in (1, 2))
    assert there.dataset == here.dataset
    for file in ("weights.safetensors", "split.json", "training.json"):
        assert there.files[file] == here.files[file]
    assert there.variants["fp32"].metrics == here.variants["fp32"].metrics

    judged = [
        load_photos(str(data), repository, there, limit=2, seed=0, workers=1)
        for data in (shards, folder)
    ]
    assert judged[0].digest == judged[1].digest and judged[0].files == judged[1].files
    split = json.loads(repository.read_file(there, "split.json"))
    assert set(judged[0].files) <= {f for files in split["test"].values() for f in files}
