"""Which versions are served, and what is refused: over a real repository and server."""

import errno
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from serving import loaded_version
from serving.client import AsyncClient
from serving.engine import Engine, load_engine
from serving.errors import BrokenVersion, NotFound
from serving.loading import (
    LoadedModel,
    Wanted,
    update_model,
    with_version,
    without_versions,
)
from serving.repository import Repository
from serving.version_policy import read_policy
from tests.conftest import running_server
from tests.photos import jpeg
from tests.tiny import build_version, golden_of

SUMMARY = (
    b'{"photos": 1, "clean_accuracy": 1.0, "robust_accuracy": [], "corruption_accuracy": 1.0, '
    b'"created": "2026-01-01"}'
)


def full_version(root: Path, name: str) -> int:
    """A version with a file of every kind that may lie in one."""
    extra = {"weights.safetensors": b"weights", "plots/curves.png": b"plot"}
    version = build_version(root, name, extra_files=extra)
    repository = Repository(root)
    with repository.staging(name) as folder:
        (folder / "summary.json").write_bytes(SUMMARY)
        (folder / "report.html").write_bytes(b"<html></html>")
        repository.attach_analysis(name, version, folder)
    return version


FILES = (
    "model.onnx",
    "weights.safetensors",
    "golden.npz",
    "manifest.json",
    "manifest.sha256",
    "plots/curves.png",
    "analysis/summary.json",
    "analysis/report.html",
    "analysis/digests.json",
)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_the_list_of_files_is_complete(tmp_path: Path) -> None:
    full_version(tmp_path, "pets")
    folder = tmp_path / "pets/1"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == set(FILES)


@pytest.mark.parametrize("file", FILES)
async def test_a_flipped_byte_in_any_file_is_refused_and_the_rest_served(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    full_version(tmp_path, "pets")
    full_version(tmp_path, "pets")
    full_version(tmp_path, "birds")
    flip(tmp_path / "pets/2" / file)
    flip(tmp_path / "birds/1" / file)
    assert Repository(tmp_path).verify("pets", 2)
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        assert [(m.name, m.versions) for m in await client.list_models()] == [("pets", (1,))]
        assert (await client.classify([jpeg()], model="pets")).version == 1
        with pytest.raises(NotFound):
            await client.classify([jpeg()], model="pets", version=2)
        with pytest.raises(NotFound):
            await client.classify([jpeg()], model="birds")
    refused = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(refused) == 2 and "pets/2" in refused[1] and "birds/1" in refused[0]


async def test_the_newest_and_the_aliased_are_served(tmp_path: Path) -> None:
    for seed in range(4):
        build_version(tmp_path, "pets", seed=seed)
    repository = Repository(tmp_path)
    repository.promote("pets", 2)
    repository.promote("pets", 4, "canary")
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        (model,) = await client.list_models()
    assert (model.versions, model.default_version) == ((2, 4), 2)
    assert model.aliases == {"stable": 2, "canary": 4}


async def test_a_broken_alias_target_is_said_and_the_newest_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(tmp_path, "pets")
    build_version(tmp_path, "pets", seed=1)
    Repository(tmp_path).promote("pets", 1)
    flip(tmp_path / "pets/1/model.onnx")
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        (model,) = await client.list_models()
        assert (model.versions, model.default_version, model.aliases) == ((2,), 2, {})
        with pytest.raises(NotFound):
            await client.classify([jpeg()], model="pets", version="stable")
    assert "alias 'stable' of pets: its version is refused, and it is not served" in caplog.text
    assert "calls that name no version are answered by 2" in caplog.text


async def test_an_alias_that_moves_to_a_version_refused_before_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that is whole, and gives other answers here: it can be promoted."""
    build_version(tmp_path, "pets")
    repository = Repository(tmp_path)
    repository.promote("pets", 1)
    said = "alias 'stable' of pets: its version is refused, and it stays with 1"
    async with running_server(tmp_path, control="none") as running:
        build_version(tmp_path, "pets", seed=2, golden=golden_of(seed=3))
        await running.server.control.rescan()
        assert "not served: pets/2: its probabilities differ" in caplog.text
        for times in (1, 2):
            repository.promote("pets", 2)
            for _ in range(2):
                await running.server.control.rescan()
            assert caplog.messages.count(said) == times
            assert repository.rollback("pets") == 1
            await running.server.control.rescan()


async def test_a_malformed_alias_does_not_stop_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(tmp_path, "pets")
    Repository(tmp_path).promote("pets", 1)
    (tmp_path / "pets/aliases/stable").write_text("first\n")
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        assert (await client.classify([jpeg()], model="pets")).version == 1
    assert "aliases of pets can't be read" in caplog.text


async def test_an_alias_whose_version_is_gone_is_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that is no file is none."""
    for seed in range(2):
        build_version(tmp_path, "pets", seed=seed)
    Repository(tmp_path).promote("pets", 1)
    (tmp_path / "pets/aliases/folder").mkdir()
    (tmp_path / "pets/aliases/nowhere").symlink_to("gone")
    shutil.rmtree(tmp_path / "pets/1")
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        assert (await client.classify([jpeg()], model="pets")).version == 2
        (problem,) = running.server.control.problems()  # `serve --check` ends with 1
    assert problem == "the aliases of pets name versions that are not there: stable (1)"
    assert problem in caplog.text


async def test_a_golden_mismatch_falls_back_to_the_version_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(tmp_path, "pets")
    build_version(tmp_path, "pets", golden=golden_of(seed=3))
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        (model,) = await client.list_models()
    assert model.versions == (1,)
    assert "golden" in caplog.text


async def test_an_unreadable_summary_costs_only_the_summary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(tmp_path, "pets")
    repository = Repository(tmp_path)
    with repository.staging("pets") as folder:
        (folder / "summary.json").write_text('{"photos": "many"}')
        repository.attach_analysis("pets", 1, folder)
    async with running_server(tmp_path) as running, AsyncClient(running.address) as client:
        assert (await client.get_model("pets")).robustness is None
    assert "without the figures of its analysis" in caplog.text


def test_what_comes_while_another_is_loaded_takes_no_alias_away(models: Path) -> None:
    """Promoted meanwhile, it is not here yet: the one before keeps its name until it is."""
    repository, wanted = Repository(models), Wanted(policy=read_policy("latest:1"))
    repository.promote("pets", 1)

    def load(name: str, version: int) -> Engine:
        if version == 2:
            build_version(models, "pets", seed=2)
            repository.promote("pets", 3)
        return load_engine(repository, name, version, device="cpu", cores=1)

    first = update_model(repository, "pets", load, wanted, LoadedModel())
    build_version(models, "pets", seed=1)
    second = update_model(repository, "pets", load, wanted, first)
    assert (list(second.versions), second.aliases) == ([1, 2], {"stable": 1})
    assert second.alias_problem == "" and second.default_version == 1
    third = update_model(repository, "pets", load, wanted, second)
    assert (list(third.versions), third.aliases) == ([3], {"stable": 3})


def test_what_takes_the_place_of_a_version_while_it_is_loaded_is_loaded_next(models: Path) -> None:
    repository, wanted = Repository(models), Wanted(policy=read_policy("latest:1"))
    loads = []

    def load(name: str, version: int) -> Engine:
        engine = load_engine(repository, name, version, device="cpu", cores=1)
        loads.append(version)
        if len(loads) == 1:
            shutil.rmtree(models / "pets/1")
            build_version(models, "pets", seed=7)
        return engine

    model = update_model(repository, "pets", load, wanted, LoadedModel())
    for _ in range(2):
        model = update_model(repository, "pets", load, wanted, model)
    assert loads == [1, 1]
    assert model.versions[1].engine.manifest == repository.manifest("pets", 1)


def test_no_alias_of_versions_that_stay_names_one_that_is_gone(models: Path) -> None:
    """As of one that was to restart, and was removed meanwhile: calls would not be answered."""
    repository = Repository(models)

    def load(name: str, version: int) -> Engine:
        return load_engine(repository, name, version, device="cpu", cores=1)

    first = update_model(
        repository, "pets", load, Wanted(policy=read_policy("latest:1")), LoadedModel()
    )
    before = replace(first, restarting={2: "its digest"}, aliases={"old": 1, "stable": 2})
    after = update_model(repository, "pets", load, Wanted(policy=read_policy("9")), before)
    assert after.kept and (after.served, after.aliases) == ({1}, {"old": 1})
    assert after.default_version == 1


def test_a_version_that_is_loaded_by_its_number_is_no_longer_refused(models: Path) -> None:
    repository, file = Repository(models), models / "pets/1/model.onnx"

    def load(name: str, version: int) -> Engine:
        return load_engine(repository, name, version, device="cpu", cores=1)

    sound = file.read_bytes()
    flip(file)
    wanted = Wanted(policy=read_policy("latest:1"))
    before = update_model(repository, "pets", load, wanted, LoadedModel())
    assert (list(before.versions), list(before.refused)) == ([], [1])
    file.write_bytes(sound)
    now = with_version(repository, "pets", 1, load, before)
    assert (list(now.versions), list(now.refused)) == ([1], [])


def test_what_is_let_go_takes_no_other_version_along() -> None:
    before = LoadedModel(restarting={2: "two", 3: "three"}, aliases={"old": 2, "stable": 3})
    after = without_versions({2}, "pets", before)
    assert (after.restarting, after.aliases) == ({3: "three"}, {"stable": 3})


def test_what_can_not_be_loaded_anew_says_why_though_the_error_has_no_words(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository, wanted = Repository(models), Wanted(policy=read_policy("latest:1"))

    def load(name: str, version: int) -> Engine:
        return load_engine(repository, name, version, device="cpu", cores=1)

    def no_memory(name: str, version: int) -> Engine:
        raise MemoryError

    now = update_model(repository, "pets", load, wanted, LoadedModel())
    shutil.rmtree(models / "pets/1")
    build_version(models, "pets", seed=7)
    assert list(update_model(repository, "pets", no_memory, wanted, now).versions) == [1]
    assert "pets/1 stays as it was loaded: MemoryError()" in caplog.messages


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ("nothing", "there is none;"),
        ("no folder", "there is none;"),
        ("only broken", r"every version there is refused \(pets/1"),
    ],
)
async def test_nothing_to_serve_is_a_clear_error(tmp_path: Path, there: str, why: str) -> None:
    root = tmp_path / "models"
    if there == "nothing":
        root.mkdir()
    if there == "only broken":
        build_version(root, "pets")
        flip(root / "pets/1/manifest.json")
    with pytest.raises(NotFound, match=f"^no model to serve in .*/models: {why}"):
        async with running_server(root):
            pass


@pytest.mark.parametrize(
    "error, reason, traced",
    [
        (BrokenVersion("manifest.json can't be read: Input/output error"), "can't be read", False),
        (OSError(errno.EMFILE, "Too many open files"), "pets/2 can't be loaded: OSError(24", False),
        (MemoryError("std::bad_alloc"), "can't be loaded: MemoryError('std::bad_alloc')", True),
    ],
)
def test_a_refusal_that_passes_is_tried_again_with_the_same_files(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
    traced: bool,
) -> None:
    build_version(models, "pets", seed=1)
    repository, wanted = Repository(models), Wanted(policy=read_policy("latest:1"))
    attempts = []

    def load(name: str, version: int) -> Engine:
        attempts.append(version)
        if attempts.count(2) < 3 and version == 2:
            raise error
        return load_engine(repository, name, version, device="cpu", cores=1)

    now = update_model(repository, "pets", load, wanted, LoadedModel())
    assert list(now.versions) == [1] and reason in now.refused[2].reason
    assert update_model(repository, "pets", load, wanted, now) == now
    assert attempts == [2, 1]  # the wait is not over
    monkeypatch.setattr(loaded_version, "RETRY_WAITS_S", (0.0,))
    now = update_model(repository, "pets", load, wanted, LoadedModel(versions=now.versions))
    assert now.refused[2].attempts == 1
    now = update_model(repository, "pets", load, wanted, now)
    assert list(now.versions) == [2] and not now.refused
    assert attempts == [2, 1, 2, 2]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [bool(record.exc_info) for record in errors] == [traced, traced]


def test_a_refusal_is_said_once_and_waits_longer_each_time(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flip(models / "pets/1/model.onnx")
    repository, wanted = Repository(models), Wanted(policy=read_policy("latest:1"))

    def load(name: str, version: int) -> Engine:
        return load_engine(repository, name, version, device="cpu", cores=1)

    monkeypatch.setattr(loaded_version, "RETRY_WAITS_S", (0.0, 0.0, 100.0))
    now = LoadedModel()
    for attempt in (1, 2, 3, 3, 3):
        now = update_model(repository, "pets", load, wanted, now)
        assert now.refused[1].attempts == attempt
    assert [r.levelno for r in caplog.records].count(logging.ERROR) == 1
