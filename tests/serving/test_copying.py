"""Copies between folders; those to and from buckets are tested over real stores."""

from pathlib import Path

import pytest

from serving.copying import copy_version
from serving.errors import BrokenVersion
from serving.repository import Repository
from tests.tiny import build_version


def test_a_copy_that_is_there_is_found_behind_others_and_an_altered_one_is_none(
    models: Path, tmp_path: Path
) -> None:
    source, target = Repository(models), Repository(tmp_path / "other")
    assert copy_version(source, "pets", 1, target) == 1
    assert target.read_analysis("pets", 1, "plots/cat.png") is None
    with source.staging("pets") as folder:
        (folder / "plots").mkdir()
        (folder / "plots/cat.png").write_bytes(b"picture")
        source.attach_analysis("pets", 1, folder)
    assert copy_version(source, "pets", 1, target) == 1
    assert target.verify("pets", 1) == []
    assert target.read_analysis("pets", 1, "plots/cat.png") == b"picture"
    build_version(target.root, "pets", seed=1)
    build_version(target.root, "pets")
    (target.root / "pets/3/manifest.json").write_bytes(b"")
    assert copy_version(source, "pets", 1, target) == 1
    (target.root / "pets/1/model.onnx").write_bytes(b"")
    assert copy_version(source, "pets", 1, target) == 4
    assert target.verify("pets", 4) == []


def test_an_altered_version_is_not_copied(models: Path, tmp_path: Path) -> None:
    target = Repository(tmp_path / "other")
    (models / "pets/1/golden.npz").write_bytes(b"")
    with pytest.raises(BrokenVersion, match=r"pets/1 is not copied: golden.npz is altered"):
        copy_version(Repository(models), "pets", 1, target)
    assert target.names() == []
