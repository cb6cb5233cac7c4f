"""Publishing under the worst conditions: two at once, and killed before the rename."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serving.errors import NotFound
from serving.modelspec import FileEntry, Manifest
from serving.repository import Repository
from tests.conftest import ROOT, running_server
from tests.tiny import build_version

PUBLISH_MANY = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.tiny import build_version
for seed in range(8):
    print(build_version(Path(sys.argv[1]), "pets", seed=seed))
"""

KILL_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from tests.tiny import build_version
os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
build_version(Path(sys.argv[1]), "pets")
"""


def python(code: str, root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_publishers_at_once_get_a_number_each(tmp_path: Path) -> None:
    publishers = [python(PUBLISH_MANY, tmp_path) for _ in range(2)]
    numbers = [int(n) for p in publishers for n in p.communicate(timeout=60)[0].split()]
    assert [p.returncode for p in publishers] == [0, 0]
    assert sorted(numbers) == list(range(1, 17))
    repository = Repository(tmp_path)
    assert repository.versions("pets") == list(range(1, 17))
    assert all(repository.verify("pets", version) == [] for version in range(1, 17))
    assert not list((tmp_path / "pets").glob(".staging-*"))


def test_a_publisher_whose_number_another_takes_gets_the_next(tmp_path: Path) -> None:
    build_version(tmp_path, "pets")
    repository, tried = Repository(tmp_path), []
    manifest = repository.manifest("pets", 1)

    def describe(number: int, files: dict[str, FileEntry]) -> Manifest:
        if not tried:
            build_version(tmp_path, "pets", seed=1)
        tried.append(number)
        return replace(manifest, version=number, files=files)

    with repository.staging("pets") as folder:
        for file in manifest.files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(repository.read_file(manifest, file))
        assert repository.publish("pets", folder, describe).version == 3
    assert tried == [2, 3]
    assert [repository.verify("pets", version) for version in (1, 2, 3)] == [[], [], []]


async def test_a_publisher_killed_before_the_rename_leaves_nothing_to_load(tmp_path: Path) -> None:
    publisher = python(KILL_BEFORE_RENAME, tmp_path)
    publisher.communicate(timeout=60)
    assert publisher.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "pets").iterdir()
    assert left.name.startswith(".staging-") and (left / "manifest.json").is_file()
    assert Repository(tmp_path).names() == []
    with pytest.raises(NotFound, match="no model to serve"):
        async with running_server(tmp_path):
            pass
    assert build_version(tmp_path, "pets") == 1
    async with running_server(tmp_path):
        pass


def test_a_version_is_published_though_no_config_can_be_written_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pets/config.pbtxt/taken").mkdir(parents=True)
    assert build_version(tmp_path, "pets") == 1
    assert Repository(tmp_path).verify("pets", 1) == []
    assert "pets/1 is published, but config.pbtxt beside it can't be written: " in caplog.text


def test_what_a_rename_has_shown_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever repeats a rollback that seemed to fail would go back twice."""
    repository, fsync = Repository(tmp_path), os.fsync

    def broken(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") in (
            str(tmp_path / "pets"),
            str(tmp_path / "pets/aliases"),
        ):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    assert [build_version(tmp_path, "pets") for _ in range(2)] == [1, 2]
    repository.promote("pets", 1)
    repository.promote("pets", 2)
    assert repository.rollback("pets") == 1 and repository.aliases("pets") == {"stable": 1}
    said = f"what was just written in {tmp_path / 'pets/aliases'} is there, but a loss of power"
    assert caplog.text.count(said) == 3


def test_publishers_at_once_leave_the_config_of_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Repository._write_beside

    def late(self: Repository, name: str, file: str, data: bytes) -> None:
        """Another publishes, from its beginning to its end, before this one writes."""
        monkeypatch.setattr(Repository, "_write_beside", write)
        assert build_version(tmp_path, "pets", labels=("a", "b", "c")) == 2
        write(self, name, file, data)

    monkeypatch.setattr(Repository, "_write_beside", late)
    assert build_version(tmp_path, "pets") == 1
    assert (tmp_path / "pets/labels.txt").read_text() == "a\nb\nc\n"
    assert "with version 2" in (tmp_path / "pets/config.pbtxt").read_text()
