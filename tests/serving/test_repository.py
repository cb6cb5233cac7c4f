import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from serving.errors import BrokenVersion, InvalidRequest, NotFound
from serving.layout import contained, files_below
from serving.modelspec import FileEntry
from serving.repository import Repository
from tests.tiny import attach_trust, build_version


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """pets/1 to pets/3."""
    for seed in range(3):
        build_version(tmp_path, "pets", seed=seed)
    return Repository(tmp_path)


def test_versions_count_up_and_the_newest_answers(repository: Repository) -> None:
    assert repository.names() == ["pets"]
    assert repository.versions("pets") == [1, 2, 3]
    assert repository.resolve("pets") == 3
    assert repository.resolve("pets", "2") == 2


def test_versions_are_sorted_as_numbers(repository: Repository) -> None:
    os.rename(repository.root / "pets/1", repository.root / "pets/10")
    assert repository.versions("pets") == [2, 3, 10]


def test_promote_and_roll_back(repository: Repository) -> None:
    repository.promote("pets", 1)
    assert repository.resolve("pets") == 1
    repository.promote("pets", 2)
    repository.promote("pets", 2)  # again: no second entry in the history
    repository.promote("pets", 3, "canary")
    assert repository.aliases("pets") == {"canary": 3, "stable": 2}
    assert repository.resolve("pets", "canary") == 3
    assert repository.rollback("pets") == 1
    assert repository.resolve("pets") == 1
    with pytest.raises(NotFound, match="no earlier version"):
        repository.rollback("pets")
    assert repository.resolve("pets") == 1
    repository.promote("pets", 2)
    graph = repository.root / "pets/1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(BrokenVersion, match="pets/1, which .* named before, is broken: model.onnx"):
        repository.rollback("pets")
    assert repository.resolve("pets") == 2
    os.rename(repository.root / "pets/1", repository.root / "pets/.gone")
    with pytest.raises(NotFound, match="no version 1"):
        repository.rollback("pets")
    assert repository.resolve("pets") == 2


@pytest.mark.parametrize("alias", ["3", "../stable", "", ".hidden", "a/b", "x" * 65])
def test_a_bad_alias_is_refused(repository: Repository, alias: str) -> None:
    with pytest.raises(InvalidRequest):
        repository.promote("pets", 1, alias)


def test_a_broken_version_is_not_promoted(repository: Repository) -> None:
    (repository.root / "pets/2/model.onnx").write_bytes(b"")
    with pytest.raises(BrokenVersion, match="model.onnx is altered"):
        repository.promote("pets", 2)
    assert repository.aliases("pets") == {}


def test_unknown_names_say_what_is_known(repository: Repository) -> None:
    with pytest.raises(NotFound, match="models here: pets"):
        repository.resolve("pet")
    with pytest.raises(NotFound, match="newest first: 3, 2, 1"):
        repository.resolve("pets", "7")
    repository.promote("pets", 1)
    for unknown in ("canary", "²"):
        with pytest.raises(NotFound, match=f"'{unknown}'; aliases: stable"):
            repository.resolve("pets", unknown)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".x", "a b", "ü"])
def test_a_name_can_not_lead_elsewhere(repository: Repository, name: str) -> None:
    with pytest.raises(InvalidRequest):
        repository.versions(name)


def test_a_flipped_byte_in_any_file_is_found(repository: Repository) -> None:
    folder = repository.root / "pets/1"
    assert repository.verify("pets", 1) == []
    manifest = repository.manifest("pets", 1)
    for file in sorted(files_below(folder)):
        path = folder / file
        sound = path.read_bytes()
        for position in (0, len(sound) // 2, len(sound) - 1):
            damaged = bytearray(sound)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            assert repository.verify("pets", 1), (file, position)
            if file in manifest.files:
                with pytest.raises(BrokenVersion, match="is altered"):
                    repository.read_file(manifest, file)
        path.write_bytes(sound)
    assert repository.verify("pets", 1) == []


def test_missing_and_extra_files_are_found(repository: Repository) -> None:
    folder = repository.root / "pets/1"
    (folder / "golden.npz").unlink()
    (folder / "notes.txt").write_text("mine")
    assert repository.verify("pets", 1) == [
        "golden.npz is missing",
        "notes.txt is not part of the version",
    ]


def test_a_link_out_of_the_version_is_refused(repository: Repository, tmp_path: Path) -> None:
    folder = repository.root / "pets/1"
    outside = tmp_path / "outside.onnx"
    os.rename(folder / "model.onnx", outside)
    os.symlink(outside, folder / "model.onnx")
    assert any("leads out" in problem for problem in repository.verify("pets", 1))
    manifest = repository.manifest("pets", 1)
    with pytest.raises(BrokenVersion, match="leads out"):
        repository.read_file(manifest, "model.onnx")


@pytest.mark.parametrize("file", ["/etc/passwd", "../2/model.onnx", "plots/../../x", "..", ".", ""])
def test_a_listed_path_that_leads_out_of_the_version_is_refused(file: str) -> None:
    """Of a bucket, too, which may hold such a key: a copy of it would be written there."""
    with pytest.raises(BrokenVersion, match="leads out of the version"):
        contained(file)


def test_a_linked_folder_is_not_part_of_a_version(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", repository.root / "pets/1/plots")
    assert repository.verify("pets", 1) == ["plots is not part of the version"]


def test_a_listed_file_in_a_folder_that_is_linked_is_refused(tmp_path: Path) -> None:
    build_version(tmp_path / "models", "pets", extra_files={"plots/curves.png": b"plot"})
    repository, plots = Repository(tmp_path / "models"), tmp_path / "models/pets/1/plots"
    os.rename(plots, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", plots)
    with pytest.raises(BrokenVersion, match="'plots/curves.png' leads out of the version"):
        repository.read_file(repository.manifest("pets", 1), "plots/curves.png")


def test_a_version_under_another_number_is_refused(repository: Repository) -> None:
    os.rename(repository.root / "pets/1", repository.root / "pets/9")
    with pytest.raises(BrokenVersion, match="the manifest is that of pets/1"):
        repository.manifest("pets", 9)


def attach(repository: Repository, text: str) -> None:
    """An analysis to pets/1."""
    with repository.staging("pets") as folder:
        (folder / "report.html").write_text(text)
        (folder / f"{text}.png").write_bytes(b"picture")
        repository.attach_analysis("pets", 1, folder)


def test_findings_are_of_one_analysis_also_where_it_is_replaced_meanwhile(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_trust(repository.root, "pets", 1, (0.9, 0.5))
    old = repository.findings("pets", 1)
    read, summaries = Repository._read, 0

    def replaced_meanwhile(self: Repository, name: str, version: int, file: str) -> bytes:
        nonlocal summaries
        data = read(self, name, version, file)
        if file == "analysis/summary.json":
            summaries += 1
            if summaries == 1:
                attach_trust(repository.root, "pets", 1, (0.9, 0.7), photos=32)
        return data

    monkeypatch.setattr(Repository, "_read", replaced_meanwhile)
    found = repository.findings("pets", 1)
    assert found == repository.findings("pets", 1) != old and found.robustness.photos == 32


def test_an_analysis_without_its_digests_is_none(repository: Repository) -> None:
    """As in a copy of a bucket that was made while one was uploaded."""
    attach(repository, "robust")
    (repository.root / "pets/1/analysis/digests.json").unlink()
    assert repository.read_analysis("pets", 1, "report.html") is None
    assert repository.analysis_files("pets", 1) == [] and repository.verify("pets", 1) == []
    repository.promote("pets", 1)


@pytest.mark.parametrize("digests", [b"", b"{ }", b"[" * 100_000])
def test_digests_of_an_analysis_that_are_damaged_are_found(
    repository: Repository, digests: bytes
) -> None:
    attach(repository, "robust")
    (repository.root / "pets/1/analysis/digests.json").write_bytes(digests)
    (problem, *_) = repository.verify("pets", 1)
    assert problem.startswith("analysis/digests.json is ")
    for read in (repository.analysis_files, repository.findings):
        with pytest.raises(BrokenVersion, match="analysis/digests.json is "):
            read("pets", 1)


def test_a_file_that_is_not_of_the_analysis_is_found(repository: Repository) -> None:
    attach(repository, "robust")
    (repository.root / "pets/1/analysis/notes.txt").write_text("mine")
    assert repository.verify("pets", 1) == ["analysis/notes.txt is not part of the version"]


def test_a_version_whose_analysis_is_replaced_meanwhile_is_whole(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(repository, "robust")
    read = Repository._analysis_digests

    def then_replaced(self: Repository, name: str, version: int) -> dict[str, FileEntry]:
        monkeypatch.setattr(Repository, "_analysis_digests", read)
        digests = read(self, name, version)
        attach(repository, "better")
        return digests

    monkeypatch.setattr(Repository, "_analysis_digests", then_replaced)
    assert repository.verify("pets", 1) == []
    assert repository.read_analysis("pets", 1, "report.html") == b"better"


def test_an_alias_of_a_version_that_is_gone_is_left_out(repository: Repository) -> None:
    repository.promote("pets", 1)
    os.rename(repository.root / "pets/1", repository.root / "pets/.gone")
    assert repository.aliases("pets") == {}
    assert repository.resolve("pets") == 3


def test_malformed_aliases_are_named(repository: Repository) -> None:
    for alias in ("canary", "first", "stable"):
        repository.promote("pets", 1, alias)
    for alias in ("canary", "stable"):
        (repository.root / "pets/aliases" / alias).write_text("one\n")
    both = "alias 'canary' of 'pets' is malformed; alias 'stable' of 'pets' is malformed"
    with pytest.raises(BrokenVersion, match=both):
        repository.aliases("pets")


def test_a_number_that_no_version_can_have_makes_an_alias_malformed(repository: Repository) -> None:
    """A time in seconds: the version after it, of ten digits too, would be there for nobody."""
    (repository.root / "pets/aliases").mkdir()
    (repository.root / "pets/aliases/canary").write_text("1732970000\n")
    with pytest.raises(BrokenVersion, match="alias 'canary' of 'pets' is malformed"):
        repository.aliases("pets")
    assert build_version(repository.root, "pets") == repository.versions("pets")[-1] == 4


def test_a_malformed_alias_is_no_trouble_of_another(repository: Repository) -> None:
    repository.promote("pets", 1, "first")
    repository.promote("pets", 1, "canary")
    (repository.root / "pets/aliases/canary").write_text("one\n")
    assert repository.resolve("pets", "first") == 1
    assert repository.resolve("pets") == 3
    with pytest.raises(BrokenVersion, match="^alias 'canary' of 'pets' is malformed$"):
        repository.resolve("pets", "canary")
    for unknown in ("../1", "last"):
        with pytest.raises(NotFound, match=f"alias '{unknown}'; alias 'canary' of 'pets' is malf"):
            repository.resolve("pets", unknown)


def test_a_number_that_an_alias_named_is_given_to_no_other(
    repository: Repository, tmp_path: Path
) -> None:
    """Whoever is promoted stays who it was, though it be deleted; what is no version is no end."""
    newest = repository.versions("pets")[-1]
    repository.promote("pets", newest)
    shutil.rmtree(repository.root / "pets" / str(newest))
    assert build_version(repository.root, "pets") == newest + 1
    (repository.root / "pets" / str(newest + 2)).touch()
    assert build_version(repository.root, "pets") == newest + 3
    assert repository.aliases("pets") == {}


def test_publishers_that_come_and_go_do_not_disturb_each_other(repository: Repository) -> None:
    """As the processes of a training do when they begin: each looks for what others have left."""

    def publisher(_: int) -> None:
        for _ in range(100):
            with repository.staging("birds") as folder:
                assert folder.is_dir()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publisher, range(8)))
    assert not (repository.root / "birds").exists()


def test_who_serves_need_not_be_who_trained(repository: Repository) -> None:
    """safetensors, for one, makes files that no other user may read."""
    with repository.staging("pets") as folder:
        manifest = repository.manifest("pets", 1)
        for file in manifest.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(repository.read_file(manifest, file))
        (folder / "plots").mkdir(mode=0o700)
        (folder / "plots/curves.png").touch(mode=0o600)
        repository.publish(
            "pets", folder, lambda n, files: replace(manifest, version=n, files=files)
        )
    with repository.staging("pets") as folder:
        (folder / "ideal").mkdir(mode=0o700)
        (folder / "ideal/cat.png").touch(mode=0o600)
        repository.attach_analysis("pets", 4, folder)
    assert repository.verify("pets", 4) == []
    for path in (repository.root / "pets/4").rglob("*"):
        needed = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & needed == needed, path


def test_so_it_is_where_what_the_trainer_makes_is_its_own(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        build_version(tmp_path / "new/models", "pets")
    finally:
        os.umask(before)
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {path.stat().st_mode & 0o555 for path in made if path.is_dir()} == {0o555}
    assert {path.stat().st_mode & 0o444 for path in made if path.is_file()} == {0o444}


def test_a_failed_publication_leaves_nothing(repository: Repository) -> None:
    with pytest.raises(ZeroDivisionError), repository.staging("birds") as folder:
        (folder / "model.onnx").write_bytes(b"half")
        raise ZeroDivisionError
    assert repository.names() == ["pets"]
    assert not (repository.root / "birds").exists()


def test_a_folder_that_goes_away_while_it_is_read_has_no_versions(tmp_path: Path, monkeypatch):
    """A training makes the folder of its model, and takes it away if it publishes nothing."""
    (tmp_path / "cats").mkdir()

    def gone_at_once(path: Path) -> bool:
        path.rmdir()
        return True

    monkeypatch.setattr("serving.repository.is_dir", gone_at_once)
    assert Repository(tmp_path).versions("cats") == []
