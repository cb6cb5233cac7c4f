"""classify --out: very many photos to Parquet, in parts, resumable, shared by machines."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from serving.batch_job import run_job
from serving.batch_plan import Plan, Share, agree, digest_of
from serving.client import AsyncClient
from serving.errors import InvalidRequest, Unavailable
from serving.places import Folder, place
from tests.conftest import ROOT, Running, ServerProcess
from tests.object_store import BUCKET, running_store
from tests.photos import jpeg

PHOTOS = 11


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for n in range(PHOTOS):
        (folder / ("deeper" if n % 2 else ".") / f"{n:02d}.jpg").write_bytes(jpeg(seed=n))
    (folder / "07-broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    (folder / "notes.txt").write_text("no photo")
    return folder


def plan_of(source: Folder, part_photos: int = 4, **changes) -> Plan:
    photos = source.photos()
    settings = {"photos": "here", "model": "pets", "version": 1, "top_k": 2} | changes
    return Plan(count=len(photos), digest=digest_of(photos), part_photos=part_photos, **settings)


def rows_of(out: Path) -> list[dict]:
    files = sorted(out.glob("part-*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


class Dying(Folder):
    """Reads as a place that goes away after so many photos."""

    def __init__(self, root: Path, after: int) -> None:
        super().__init__(root)
        self.left = after

    def read(self, key: str) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Unavailable("gone")
        return super().read(key)


async def job(running: Running, plan: Plan, source: Folder, out: Folder, share: Share) -> int:
    async with AsyncClient(running.address) as client:
        return await run_job(
            client, plan, share, list(source.photos()), source, out, 3, done=lambda photos: None
        )


async def test_every_photo_has_its_row_and_its_own_answer(
    running: Running, photos: Path, tmp_path: Path
) -> None:
    source = Folder(photos)
    failed = await job(running, plan_of(source), source, Folder(tmp_path / "out"), Share())
    rows = rows_of(tmp_path / "out")
    assert [row["photo"] for row in rows] == list(source.photos()) and len(rows) == PHOTOS + 1
    assert failed == 1
    async with AsyncClient(running.address) as client:
        for row in rows:
            if row["photo"] == "07-broken.jpg":
                assert row["error"] and row["label"] is None and row["labels"] == []
                continue
            answer = await client.classify([photos / row["photo"]], model="pets", top_k=2)
            labels = answer.results[0].labels
            assert row["labels"] == [label.name for label in labels]
            assert row["probability"] == pytest.approx(labels[0].probability, abs=1e-6)
            assert (row["error"], row["version"]) == (None, 1)


async def test_a_job_that_was_stopped_goes_on_and_repeats_no_part(
    running: Running, photos: Path, tmp_path: Path
) -> None:
    out, plan = tmp_path / "out", plan_of(Folder(photos))
    with pytest.raises(BaseExceptionGroup):
        await job(running, plan, Dying(photos, after=9), Folder(out), Share())
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert list(made) and len(made) < plan.parts
    again = Dying(photos, after=PHOTOS + 1 - 4 * len(made))  # no photo of a part that is there
    await job(running, plan, again, Folder(out), Share())
    assert len(rows_of(out)) == PHOTOS + 1
    assert made.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}.items()


async def test_machines_share_the_parts(running: Running, photos: Path, tmp_path: Path) -> None:
    source, out = Folder(photos), Folder(tmp_path / "out")
    plan = plan_of(source, part_photos=2)
    shares = [Share(rank=rank, of=3) for rank in range(3)]
    await asyncio.gather(*(job(running, plan, source, out, share) for share in shares))
    assert [row["photo"] for row in rows_of(tmp_path / "out")] == list(source.photos())


def test_another_job_in_the_same_place_is_refused(photos: Path, tmp_path: Path) -> None:
    out = Folder(tmp_path / "out")
    first = plan_of(Folder(photos))
    assert agree(first, out, version_given=False, labels=2) == first
    later = plan_of(Folder(photos), version=2)
    assert agree(later, out, version_given=False, labels=2) == first
    with pytest.raises(InvalidRequest, match="another version: 1, not 2"):
        agree(later, out, version_given=True, labels=2)
    (photos / "12.jpg").write_bytes(jpeg())
    with pytest.raises(InvalidRequest, match="another count: 12, not 13"):
        agree(plan_of(Folder(photos)), out, version_given=False, labels=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.doc").write_text("")
    with pytest.raises(InvalidRequest, match="must be empty"):
        agree(first, Folder(tmp_path / "full"), version_given=False, labels=2)


def test_the_command_from_bucket_to_bucket(
    models: Path,
    photos: Path,
    tmp_path: Path,
    start: Callable[..., ServerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "store").mkdir()
    with running_store(tmp_path / "store") as store:
        for key, value in store.environment.items():
            monkeypatch.setenv(key, value)
        bucket = place(f"s3://{BUCKET}/photos")
        for key in Folder(photos).files():
            bucket.write(key, (photos / key).read_bytes())
        server = start(models)
        flags = [f"s3://{BUCKET}/photos", "--out", f"s3://{BUCKET}/results.parquet"]
        done = classify(server, *flags)
        said = "1 of 12 photos could not be classified: see their rows\n"
        assert (done.returncode, done.stderr) == (0, said)
        again = classify(server, *flags)  # nothing is left to do
        assert (again.returncode, again.stderr) == (0, said)
        out = place(f"s3://{BUCKET}/results.parquet")
        assert out.files() == {"_plan.json", "part-00000-of-00001.parquet"}
        (tmp_path / "part.parquet").write_bytes(out.read("part-00000-of-00001.parquet"))
        rows = parquet.read_table(tmp_path / "part.parquet").to_pylist()
        assert [row["photo"] for row in rows] == list(Folder(photos).photos())


@pytest.mark.parametrize(
    "flags, said",
    [
        (["photos", "--out", "out", "--shard", "2/2"], "0 <= RANK < OF"),
        (["photos", "--out", "out", "--shard", "x"], "--shard is RANK/OF"),
        (["photos", "photos", "--out", "out"], "one folder or one prefix"),
        (["nowhere", "--out", "out"], "no such file or folder: nowhere"),
        (["photos", "--out", "ftp://x/y"], "a bucket is one of"),
    ],
)
def test_wrong_flags_say_what_is_right(flags: list[str], said: str, photos: Path) -> None:
    done = classify(None, *flags, folder=photos.parent)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr


def classify(
    server: ServerProcess | None, *flags: str, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    address = server.address if server else "127.0.0.1:1"
    command = [sys.executable, "-m", "serving.classify", *flags, "--address", address]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
