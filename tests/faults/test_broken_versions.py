"""Damaged versions that appear under a server that polls, while callers call.

What happens to files of a version that is loaded already: tests/serving/test_model_control.py.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from serving.client import AsyncClient
from serving.repository import Repository
from tests.conftest import Running, running_server
from tests.photos import jpeg
from tests.serving.held_model import until
from tests.serving.test_loading import flip
from tests.tiny import build_version, golden_of

POLL_S = 0.05


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pipe(path: Path) -> None:
    """To read it would be to wait for ever."""
    path.unlink()
    os.mkfifo(path)


# What is done to a file of the new version, and a part of the reason that is given.
DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "model deleted": ("model.onnx", Path.unlink, "model.onnx is missing"),
    "model a pipe": ("model.onnx", pipe, "model.onnx is no file"),
    "model truncated": ("model.onnx", truncate, "model.onnx is altered"),
    "model empty": ("model.onnx", empty, "model.onnx is altered"),
    "model with a flipped bit": ("model.onnx", flip, "model.onnx is altered"),
    "golden truncated": ("golden.npz", truncate, "golden.npz is altered"),
    "manifest with a flipped bit": ("manifest.json", flip, "manifest"),
    "manifest deleted": ("manifest.json", Path.unlink, "pets/2: manifest.json is missing"),
    "manifest truncated": ("manifest.json", truncate, "manifest"),
    "digest of the manifest deleted": ("manifest.sha256", Path.unlink, "manifest.sha256"),
}


def new_version(models: Path, seed: int = 1) -> Path:
    """A sound version 2, in no repository that is served."""
    elsewhere = models.with_name("elsewhere")
    build_version(elsewhere, "pets")
    build_version(elsewhere, "pets", seed=seed)
    return elsewhere / "pets/2"


@contextlib.asynccontextmanager
async def called(running: Running) -> AsyncIterator[list[tuple[int, int]]]:
    """Callers without a pause; yields caller and version of each answer. What fails is raised."""
    answered: list[tuple[int, int]] = []
    async with AsyncClient(running.address) as client, asyncio.TaskGroup() as callers:

        async def caller(number: int) -> None:
            while True:
                response = await client.classify([jpeg()], model="pets")
                answered.append((number, response.version))

        tasks = [callers.create_task(caller(number)) for number in range(4)]
        yield answered
        for task in tasks:
            task.cancel()


def states(running: Running) -> list[tuple[int, str]]:
    return [(state.version, state.state) for state in running.server.control.states()]


async def more(answered: list[tuple[int, int]], count: int = 20) -> set[int]:
    """The versions of so many calls from now on, but for each caller's first: that is under way now
    and may be of either."""
    begun = len(answered)
    await until(lambda: len(answered) >= begun + count)
    callers: set[int] = set()
    versions = set()
    for caller, version in answered[begun:]:
        if caller in callers:
            versions.add(version)
        callers.add(caller)
    return versions


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_version_is_refused_with_the_reason(models: Path, damage: str) -> None:
    file, destroy, reason = DAMAGES[damage]
    folder = new_version(models)
    destroy(folder / file)
    async with running_server(models, poll_s=POLL_S) as running, called(running) as answered:
        os.rename(folder, models / "pets/2")
        await until(lambda: states(running) == [(1, "serving"), (2, "refused")])
        assert reason in running.server.control.states()[1].reason
        assert await more(answered) == {1}
        build_version(models, "pets", seed=2)
        await until(lambda: (3, "serving") in states(running))
        assert await more(answered) == {3}


async def test_a_version_that_is_copied_file_by_file_is_served_once_it_is_whole(
    models: Path,
) -> None:
    """In any order, cut off within a file, with the server looking on all the time."""
    folder = new_version(models)
    async with running_server(models, poll_s=POLL_S) as running, called(running) as answered:
        target = models / "pets/2"
        target.mkdir()
        for file in sorted(path.name for path in folder.iterdir() if path.is_file()):
            data = (folder / file).read_bytes()
            for part in (data[: len(data) // 2], data):
                assert await more(answered, 5) <= {1}
                assert (2, "serving") not in states(running)
                (target / file).write_bytes(part)
        await until(lambda: (2, "serving") in states(running))
        assert await more(answered) == {2}


async def test_a_version_that_is_deleted_while_it_loads(models: Path) -> None:
    async with running_server(models, poll_s=0.001) as running, called(running) as answered:
        for seed in range(1, 8):
            version = build_version(models, "pets", seed=seed, golden=golden_of(seed=seed))
            await asyncio.sleep(0.005 * seed)  # before, while and after it is read
            shutil.rmtree(models / "pets" / str(version))
        await more(answered)
        last = build_version(models, "pets", seed=9, golden=golden_of(seed=9))
        await until(lambda: (last, "serving") in states(running))
        assert await more(answered) == {last}
        assert Repository(models).versions("pets")[-1] == last
