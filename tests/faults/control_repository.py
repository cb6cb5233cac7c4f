"""Does to a repository what operators, trainers and bad disks do: for model_control.py."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.layout import alias_lines
from serving.modelspec import FileEntry, Manifest
from serving.repository import Repository
from tests.faults.test_broken_versions import truncate
from tests.serving.test_loading import flip
from tests.tiny import golden_of, manifest_of, tiny_model

SIZE = 32


class Publisher:
    """Does to the folder what operators, trainers and bad disks do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = Repository(root)
        self._away = root.with_name("away")
        self._whole: dict[Path, bytes] = {}  # what the damaged files were
        self._whole_elsewhere: dict[Path, bytes] = {}  # of a model that is moved away

    def publish(self, name: str, build: str, damage: str) -> str:
        seed = int(build)
        labels = (f"cat-{build}", f"dog-{build}") + (("cow",) if damage == "labels" else ())
        golden = golden_of(seed=seed + 1 if damage == "golden" else seed)
        with self.repository.staging(name) as folder:
            (folder / "model.onnx").write_bytes(tiny_model(seed=seed).SerializeToString())
            archive = io.BytesIO()
            np.savez(archive, **golden)
            (folder / "golden.npz").write_bytes(archive.getvalue())
            damaged: list[bytes] = []

            def describe(version: int, files: dict[str, FileEntry]) -> Manifest:
                if damage in DAMAGES and not damaged:
                    file, destroy = DAMAGES[damage]
                    damaged.append((folder / file).read_bytes())
                    destroy(folder / file)
                return manifest_of(name, version, labels, SIZE, files)

            version = self.repository.publish(name, folder, describe).version
        if damaged:
            self._whole[self.root / name / str(version) / DAMAGES[damage][0]] = damaged[0]
        return f"{name}/{version}"

    def delete(self, name: str, version: str) -> str:
        path, away = self.root / name / version, self._away / name / version
        shutil.rmtree(away, ignore_errors=True)
        away.parent.mkdir(parents=True, exist_ok=True)
        path.rename(away)
        for file in [file for file in self._whole if file.parent == path]:
            del self._whole[file]
        return "OK"

    def restore(self, name: str, version: str) -> str:
        (self.root / name).mkdir(exist_ok=True)
        (self._away / name / version).rename(self.root / name / version)
        return "OK"

    def damage(self, name: str, version: str, how: str) -> str:
        file, destroy = DAMAGES[how]
        path = self.root / name / version / file
        self._whole[path] = path.read_bytes()
        destroy(path)
        return "OK"

    def mend(self, name: str, version: str) -> str:
        folder = self.root / name / version
        for file in [file for file in self._whole if file.parent == folder]:
            file.write_bytes(self._whole.pop(file))
        return "OK"

    def can_mend(self, name: str, version: int) -> bool:
        folder = self.root / name / str(version)
        return any(file.parent == folder for file in self._whole)

    def promote(self, name: str, alias: str, version: str) -> str:
        self.repository.promote(name, int(version), alias)
        return "OK"

    def name(self, name: str, alias: str, version: str) -> str:
        path = self.root / name / "aliases" / alias
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(".new")
        beside.write_bytes(alias_lines([int(version)]) if version else b"no number\n")
        os.replace(beside, path)
        return "OK"

    def unname(self, name: str, alias: str) -> str:
        (self.root / name / "aliases" / alias).unlink()
        return "OK"

    def vanish(self, name: str) -> str:
        (self.root / name).rename(self.root.with_name(f"gone-{name}"))
        of = [file for file in self._whole if file.parent.parent == self.root / name]
        self._whole_elsewhere |= {file: self._whole.pop(file) for file in of}
        return "OK"

    def return_(self, name: str) -> str:
        if (self.root / name).exists():
            shutil.rmtree(self.root / name)
        self.root.with_name(f"gone-{name}").rename(self.root / name)
        of = [file for file in self._whole_elsewhere if file.parent.parent == self.root / name]
        self._whole |= {file: self._whole_elsewhere.pop(file) for file in of}
        return "OK"


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flip": ("model.onnx", flip),
    "truncate": ("golden.npz", truncate),
    "remove": ("model.onnx", Path.unlink),
    "manifest": ("manifest.json", flip),
}
