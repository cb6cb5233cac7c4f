"""A batch job among machines and servers that come and go."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from serving.batch_job import first_error, run_job
from serving.batch_plan import PART_PHOTOS, Share, agree
from serving.client import AsyncClient
from serving.errors import Unavailable
from serving.places import Folder
from tests.commands import run_python
from tests.conftest import ROOT, ServerProcess, running_server
from tests.photos import jpeg
from tests.ports import free_port
from tests.serving.batch_jobs import plan_of, rows_of
from tests.serving.held_model import HeldModel
from tests.tiny import build_version


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(8):
        (folder / f"{n}.jpg").write_bytes(jpeg(seed=n))
    return folder


async def job(address: str, source: Folder, out: Path, patience_s: float, version: int = 1) -> int:
    async with AsyncClient(address) as client:
        keys, share = list(source.photos()), Share()
        return await run_job(
            *(client, plan_of(source, version=version), share, keys, source, Folder(out)),
            *(3, lambda photos: None),
            patience_s=patience_s,
        )


class Watched(Folder):
    """Calls `fifth` at the fifth photo that is read."""

    def __init__(self, root: Path, fifth: Callable[[], None]) -> None:
        super().__init__(root)
        self._read, self._fifth = 0, fifth

    def read(self, key: str) -> bytes:
        self._read += 1
        if self._read == 5:
            self._fifth()
        return super().read(key)


async def test_a_server_that_is_away_for_a_while_is_waited_for(
    models: Path, photos: Path, tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    port = free_port()
    server = start(models, "--port", str(port))
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.process.kill()
        server.process.wait()
        loop.call_soon_threadsafe(gone.set)

    out = tmp_path / "out"
    working = asyncio.create_task(job(server.address, Watched(photos, stop), out, patience_s=60))
    await gone.wait()
    await asyncio.sleep(3)  # longer than gRPC itself tries a call again
    assert not working.done()
    await asyncio.to_thread(start, models, "--port", str(port))
    assert await working == 0
    assert [row["error"] for row in rows_of(out)] == [None] * 8


@pytest.mark.parametrize("empty", [False, True], ids=["gone", "another"])
async def test_a_folder_that_goes_away_is_no_fault_of_its_photos(
    models: Path, photos: Path, tmp_path: Path, empty: bool
) -> None:
    """As where a network share is unmounted: the job goes on once it is back."""
    away, out = tmp_path / "away", tmp_path / "out"

    def unmount() -> None:
        photos.rename(away)
        if empty:
            photos.mkdir()

    async with running_server(models) as running:
        with pytest.raises(BaseExceptionGroup) as ended:
            await job(running.address, Watched(photos, unmount), out, patience_s=60)
        assert ended.group_contains(Unavailable, match="can't be read now: it is gone, or another")
        if empty:
            while not photos.is_dir():  # the thread that read may not be so far
                await asyncio.sleep(0.01)
            photos.rmdir()
        away.rename(photos)
        assert await job(running.address, Folder(photos), out, patience_s=60) == 0
    assert [row["error"] for row in rows_of(out)] == [None] * 8


async def test_a_server_that_stays_away_ends_the_job(photos: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(BaseExceptionGroup) as ended:
        await job("127.0.0.1:1", Folder(photos), tmp_path / "out", patience_s=2)
    assert ended.group_contains(Unavailable, match="does not answer")
    assert 2 < time.monotonic() - begun < 20
    assert rows_of(tmp_path / "out") == []


def test_a_version_that_is_no_longer_served_is_named_with_the_way_out(
    models: Path, photos: Path, tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    build_version(models, "pets", seed=2)
    source, out = Folder(photos), tmp_path / "out"
    plan = plan_of(source, part_photos=PART_PHOTOS, top_k=1)
    agree(plan, Folder(out), labels=2)
    newer = start(models)  # the newest alone: version 2
    with pytest.raises(BaseExceptionGroup) as ended:
        asyncio.run(job(newer.address, source, out, patience_s=1))
    said = str(first_error(ended.value))
    assert "goes on with version 1 alone: serve that too (serve --versions" in said
    both = start(models, "--versions", "1,2")
    given = ("-m", "serving.classify", photos, "--out", out, "--address", both.address)
    done = run_python(*given)
    assert (done.returncode, done.stderr) == (0, "")
    assert {row["version"] for row in rows_of(out)} == {1}


def test_a_version_that_one_server_does_not_have_yet_is_asked_of_the_other(
    models: Path, photos: Path, tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    """As after a publication, until each server of a cluster has looked at the repository."""
    slow = start(models, "--control", "none")
    build_version(models, "pets", seed=2)
    both = f"{slow.address},{start(models).address}"
    assert asyncio.run(job(both, Folder(photos), tmp_path / "out", patience_s=60, version=2)) == 0
    for begun in ("one", "other"):  # the servers take turns, also with the first call of a job
        given = ("--out", tmp_path / begun, "--version", "2", "--address", both)
        done = run_python("-m", "serving.classify", photos, *given)
        assert (done.returncode, done.stderr) == (0, "")
    for made in ("out", "one", "other"):
        assert {row["version"] for row in rows_of(tmp_path / made)} == {2}


@pytest.mark.parametrize("fault", ["full", "failing"])
async def test_a_server_that_is_full_or_fails_is_worth_another_try(
    fault: str, models: Path, photos: Path, tmp_path: Path
) -> None:
    """Status 2 would end the Job of deploy/batch for good."""
    command = ["-m", "serving.classify", photos, "--out", tmp_path / "out"]
    async with running_server(models, max_calls=1) as running, AsyncExitStack() as stack:
        command += ["--address", running.address]
        if fault == "full":
            held = HeldModel(running.server)
            client = await stack.enter_async_context(AsyncClient(running.address))
            call = asyncio.create_task(client.classify([jpeg()], model="pets"))
            await held.running(1)
        else:
            assert running.server.catalogue is not None
            batcher = running.server.catalogue.models["pets"].versions[1].batcher
            batcher._run_model = lambda images, alone: images / "a fault of ours"
        done = await asyncio.to_thread(run_python, *command)
        if fault == "full":
            held.release()
            await call
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert ("internal error" in done.stderr) == (fault == "failing")


@pytest.mark.skipif(find_spec("torch") is None, reason="torchrun comes with torch")
def test_torchrun_on_two_machines_with_a_broken_photo(
    models: Path, tmp_path: Path, start: Callable[..., ServerProcess]
) -> None:
    """The command of docs/batch.md. The second machine is done with its one photo, which is
    broken, long before the first."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (tmp_path / "one.jpg").write_bytes(jpeg())
    for n in range(PART_PHOTOS):
        os.link(tmp_path / "one.jpg", photos / f"{n:04d}.jpg")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    server = start(models)
    port = free_port()
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--node-rank", str(rank), "--master-addr", "127.0.0.1"),
                *("--master-port", str(port), "--no-python"),
                *(sys.executable, "-m", "serving.classify", photos, "--out", out),
                *("--address", server.address),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [agent.communicate(timeout=120)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "1 of 1 photos could not be classified: see their rows" in said[1]
    assert "could not be classified" not in said[0]
    rows = rows_of(out)
    assert len(rows) == PART_PHOTOS + 1
    assert [row["photo"] for row in rows if row["error"]] == ["broken.jpg"]
