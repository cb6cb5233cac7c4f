"""classify --out: very many photos to Parquet, in parts, resumable, shared by machines."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pyarrow.parquet as parquet
import pytest

from serving.batch_job import run_job
from serving.batch_plan import Plan, Share
from serving.client import AsyncClient
from serving.errors import InvalidRequest, Unavailable
from serving.places import Folder, place
from tests.commands import run_python
from tests.conftest import ROOT, Running, ServerProcess, running_server
from tests.object_store import BUCKET, ObjectStore, running_store
from tests.photos import black, jpeg, noise
from tests.serving.batch_jobs import plan_of, rows_of
from tests.tiny import build_version

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
    source, edge = Folder(photos), running.server._edge
    low: list[bool] = []
    edge._sinks = (*edge._sinks, lambda call: low.append(call.place is not None and call.place.low))
    failed = await job(running, plan_of(source), source, Folder(tmp_path / "out"), Share())
    assert low == [True] * (PHOTOS + 1)  # those who wait for an answer go first
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
            assert (row["familiarity"], row["unfamiliar"]) == (None, None)  # it can't tell


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


async def test_unfamiliar_photos_have_it_in_their_rows(photos: Path, tmp_path: Path) -> None:
    models, source = tmp_path / "models", Folder(photos)
    build_version(models, "pets", familiar=True)
    (photos / "black.png").write_bytes(black())
    noise(32).save(photos / "noise.png")
    async with running_server(models) as running, AsyncClient(running.address) as client:
        plan = plan_of(source, part_photos=PHOTOS + 3)
        await job(running, plan, source, Folder(tmp_path / "out"), Share())
        for row in rows_of(tmp_path / "out"):
            if row["error"]:
                assert (row["familiarity"], row["unfamiliar"]) == (None, None)
                continue
            (result,) = (await client.classify([photos / row["photo"]], model="pets")).results
            assert row["familiarity"] == pytest.approx(result.familiarity)
            assert row["unfamiliar"] is result.unfamiliar
        before = plan_of(source, part_photos=PHOTOS + 3, familiarity=False)
        await job(running, before, source, Folder(tmp_path / "before"), Share())
    told = {row["photo"]: row["unfamiliar"] for row in rows_of(tmp_path / "out")}
    assert (told["black.png"], told["noise.png"]) == (True, False)
    here, then = rows_of(tmp_path / "out"), rows_of(tmp_path / "before")
    assert [*here[0]] == [*then[0], "familiarity", "unfamiliar"]
    (part,) = (tmp_path / "out").glob("part-*")
    assert str(parquet.read_schema(part).field("unfamiliar").type) == "bool"


async def test_machines_share_the_parts(running: Running, photos: Path, tmp_path: Path) -> None:
    source, out = Folder(photos), Folder(tmp_path / "out")
    plan = plan_of(source, part_photos=2)
    shares = [Share(rank=rank, of=3) for rank in range(3)]
    await asyncio.gather(*(job(running, plan, source, out, share) for share in shares))
    assert [row["photo"] for row in rows_of(tmp_path / "out")] == list(source.photos())


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    (tmp_path / "store").mkdir()
    with running_store(tmp_path / "store") as running:
        running.put_into(monkeypatch)
        yield running


def test_the_command_from_bucket_to_bucket(
    models: Path,
    photos: Path,
    tmp_path: Path,
    start: Callable[..., ServerProcess],
    store: ObjectStore,
) -> None:
    bucket = place(f"s3://{BUCKET}/photos")
    for key in Folder(photos).files():
        bucket.write(key, (photos / key).read_bytes())
    refuse(store, "photos/00.jpg")
    server = start(models)
    flags = ["--out", f"s3://{BUCKET}/results.parquet"]
    done = classify(server, f"s3://{BUCKET}/photos", *flags)
    said = "2 of 12 photos could not be classified: see their rows\n"  # one refused, one broken
    assert (done.returncode, done.stderr) == (0, said)
    again = classify(server, f"s3://{BUCKET}/photos/", *flags)  # nothing is left to do
    assert (again.returncode, again.stderr) == (0, said)
    out = place(f"s3://{BUCKET}/results.parquet")
    assert out.files() == {"_plan.json", "part-00000-of-00001.parquet"}
    assert not out.create("_plan.json", b"{}")
    (tmp_path / "part.parquet").write_bytes(out.read("part-00000-of-00001.parquet"))
    rows = parquet.read_table(tmp_path / "part.parquet").to_pylist()
    assert {row["photo"] for row in rows} == set(Folder(photos).photos())
    errors = {row["photo"]: row["error"] for row in rows if row["error"]}
    assert errors.keys() == {"00.jpg", "07-broken.jpg"}
    assert errors["00.jpg"] == "can't be read: Access Denied."
    data = (photos / "02.jpg").read_bytes()
    bucket.write("02.jpg", data[:-2] + data[:-3:-1])  # another of the same size
    changed = classify(server, f"s3://{BUCKET}/photos", *flags)
    assert changed.returncode == 2 and "the photos are no longer those" in changed.stderr


def test_photos_that_may_be_listed_and_not_read_end_the_job(
    models: Path, photos: Path, start: Callable[..., ServerProcess], store: ObjectStore
) -> None:
    bucket = place(f"s3://{BUCKET}/photos")
    for key in ("0.jpg", "1.jpg", "2.jpg"):
        bucket.write(key, jpeg())
    refuse(store, "photos/*")
    server, flags = start(models), ["--out", f"s3://{BUCKET}/results.parquet"]
    done = classify(server, f"s3://{BUCKET}/photos", *flags)
    said = f"error: the photos in s3://{BUCKET}/photos can't be read: Access Denied. (3 were tried)"
    assert (done.returncode, done.stderr) == (1, f"{said}\n")
    refuse(store, "photos/0.jpg")
    done = classify(server, f"s3://{BUCKET}/photos", *flags)
    said = "1 of 3 photos could not be classified: see their rows\n"
    assert (done.returncode, done.stderr) == (0, said)


def test_one_photo_of_a_bucket_is_no_place(store: ObjectStore) -> None:
    place(f"s3://{BUCKET}/photos").write("0.jpg", jpeg())
    with pytest.raises(InvalidRequest, match="photos/0.jpg; with --out it takes what lies below"):
        place(f"s3://{BUCKET}/photos/0.jpg").photos()


def test_credentials_that_are_refused_are_no_fault_of_a_photo(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(f"s3://{BUCKET}/photos").write("0.jpg", jpeg())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
    with pytest.raises(Unavailable, match="can't be used"):
        place(f"s3://{BUCKET}/photos").read("0.jpg")


def refuse(store: ObjectStore, key: str) -> None:
    """By the bucket's policy, to everyone."""
    s3 = botocore.session.get_session().create_client(
        "s3", endpoint_url=store.environment["AWS_ENDPOINT_URL"]
    )
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{BUCKET}/{key}"],
    }
    policy = {"Version": "2012-10-17", "Statement": [denied]}
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    s3.close()


def test_what_failed_earlier_is_told_again(
    models: Path, photos: Path, start: Callable[..., ServerProcess]
) -> None:
    server, flags = start(models), [str(photos), "--out", "out"]
    os.truncate(photos / "00.jpg", 1 << 40)  # more than the memory
    said = "2 of 12 photos could not be classified: see their rows\n"
    for _ in range(2):
        done = classify(server, *flags, folder=photos.parent)
        assert (done.returncode, done.stderr) == (0, said)
    (part,) = (photos.parent / "out").glob("part-*")
    part.write_bytes(part.read_bytes()[:100])
    done = classify(server, *flags, folder=photos.parent)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {part.name} in --out can't be read (")
    assert done.stderr.endswith("); delete it, and it will be made again\n")


def test_what_no_job_can_be_made_of_is_told_in_one_line(
    models: Path, photos: Path, start: Callable[..., ServerProcess]
) -> None:
    server, folder = start(models), photos.parent
    (folder / "latin1").mkdir()
    (folder / "latin1" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg())

    def refused(*flags: str, status: int = 2) -> str:
        done = classify(server, *flags, folder=folder)
        assert done.returncode == status and done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1 and not (folder / "out").exists()
        return done.stderr

    assert "00.jpg is a file; with --out it must" in refused("photos", "--out", "photos/00.jpg")
    assert "00.jpg is a file; with --out it must" in refused("photos/00.jpg", "--out", "out")
    assert "Not a directory" in refused("photos", "--out", "photos/00.jpg/out", status=1)
    assert r"the name 'caf\udce9.jpg' is not UTF-8" in refused("latin1", "--out", "out")
    shutil.copytree(photos, folder / "\udce9")
    assert r"the name '\udce9' is not UTF-8" in refused("\udce9", "--out", "out")
    for top_k in ("3", "-1"):
        said = refused("photos", "--out", "out", "--top-k", top_k)
        assert f"--top-k must be 0 to 2, the number of labels; got {top_k}" in said


@pytest.mark.parametrize(
    "flags, said",
    [
        (["photos", "--out", "out", "--shard", "2/2"], "0 <= RANK < OF"),
        (["photos", "--out", "out", "--shard", "x"], "--shard is RANK/OF"),
        (["photos", "--out", "out", "--shard", "²/4"], "--shard is RANK/OF"),  # a digit to str
        (["photos", "photos", "--out", "out"], "one folder or one prefix"),
        (["nowhere", "--out", "out"], "no such file or folder: nowhere"),
        (["photos", "--out", "ftp://x/y"], "a bucket is one of"),
    ],
)
def test_wrong_flags_say_what_is_right(flags: list[str], said: str, photos: Path) -> None:
    done = classify(None, *flags, folder=photos.parent)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr


def test_without_the_flag_the_share_is_that_of_torchrun(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = classify(None, "photos", "--out", "out", folder=photos.parent)
    assert done.returncode == 2 and "0 <= RANK < OF" in done.stderr
    done = classify(None, "photos", folder=photos.parent)  # nothing is shared without --out
    assert done.returncode == 1 and "does not answer" in done.stderr


def classify(
    server: ServerProcess | None, *flags: str, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    address = server.address if server else "127.0.0.1:1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ("-m", "serving.classify", *flags, "--address", address)
    return run_python(*command, cwd=folder, env=environment)
