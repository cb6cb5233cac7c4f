"""A model repository in a bucket: on a real S3 server, and on emulators of the other two stores."""

import asyncio
import base64
import contextlib
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
import pytest

from serving.bucket import Bucket
from serving.client import AsyncClient, Client
from serving.copying import copy_version
from serving.errors import BrokenVersion, InvalidRequest, NotFound, Unavailable
from serving.models import main as models_command
from serving.modelspec import Manifest
from serving.page import render_page
from serving.places import BucketPlace
from serving.remote_repository import RemoteRepository
from serving.repository import Repository
from serving.storage import open_repository
from tests.azure_store import KEY as AZURE_KEY
from tests.azure_store import running_azure_store
from tests.commands import run_python
from tests.conftest import ServerProcess, running_server
from tests.google_store import running_google_store
from tests.object_store import BUCKET, ObjectStore, running_store
from tests.photos import jpeg
from tests.serving.cut_proxy import CutProxy, cut_proxy
from tests.serving.test_loading import SUMMARY
from tests.tiny import build_version

MIB = 1024 * 1024
# Of aiohttp, under adlfs and gcsfs, about bodies that are large.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
WEIGHTS = np.random.default_rng(0).bytes(20 * MIB)  # bytes that nothing compresses


LATER = [pytest.param(name, marks=pytest.mark.slow) for name in ("gs", "az")]


@pytest.fixture(scope="module", params=["s3", "gs", "az"])
def store(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[ObjectStore]:
    folder = tmp_path_factory.mktemp("store")
    starting = {
        "s3": lambda: running_store(folder),
        "gs": lambda: running_google_store(folder),
        "az": lambda: running_azure_store(folder, pytestconfig.cache),
    }
    with starting[request.param]() as running:
        yield running


# What waits for a connection that is cut: the other two repeat each request for a minute.
only_s3 = pytest.mark.parametrize("store", ["s3"], indirect=True)


@pytest.fixture
def proxy(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CutProxy]:
    """The way to the store, in the environment of this test, with an empty cache."""
    with cut_proxy(store.port) as way:
        for key, value in store.environment_at(way.port).items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(fsspec.config, "conf", {})  # as a new process has it
        fsspec.config.set_conf_env(fsspec.config.conf)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "cache"))
        yield way


@pytest.fixture
def location(request: pytest.FixtureRequest, store: ObjectStore, proxy: CutProxy) -> str:
    return f"{store.scheme}://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture
def remote(location: str) -> Repository:
    return open_repository(location)


def test_what_is_published_is_listed_verified_promoted_and_rolled_back(
    remote: Repository, models: Path
) -> None:
    local = Repository(models)
    build_version(models, "pets", seed=1)
    assert (remote.names(), remote.versions("pets")) == ([], [])
    with pytest.raises(NotFound, match="models here: none"):
        remote.resolve("pets")
    assert [copy_version(local, "pets", version, remote) for version in (1, 2)] == [1, 2]
    assert (remote.names(), remote.versions("pets")) == (["pets"], [1, 2])
    assert remote.verify("pets", 2) == []
    remote.promote("pets", 1)
    assert (remote.resolve("pets"), remote.aliases("pets")) == (1, {"stable": 1})
    remote.promote("pets", 2)
    assert remote.rollback("pets") == 1 and remote.resolve("pets") == 1
    assert remote.resolve("pets", "2") == 2
    with pytest.raises(NotFound, match="newest first: 2, 1"):
        remote.manifest("pets", 3)
    manifest = remote.manifest("pets", 1)
    assert manifest == local.manifest("pets", 1)
    for file in manifest.files:
        assert remote.read_file(manifest, file) == local.read_file(manifest, file)


# SeaweedFS, alone among stores, makes one slash of two.
@pytest.mark.parametrize("store", ["gs", "az"], indirect=True)
def test_names_that_no_folder_has_are_each_their_own(location: str, proxy: CutProxy) -> None:
    place = BucketPlace(Bucket(location))
    names = ["a.jpg", "/a.jpg", "b//c.jpg", "b/c.jpg", "d e+f%20.jpg", "[g]*.jpg", "h#1.jpg"]
    for name in names:
        place.write(name, name.encode())
    assert sorted(place.photos()) == sorted(names)
    assert [place.read(name).decode() for name in names] == names


def test_a_copy_of_the_bucket_is_a_repository_and_back_again(
    remote: RemoteRepository, models: Path, tmp_path: Path
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    with remote.staging("pets") as folder:
        (folder / "report.html").write_text("robust")
        (folder / "plots").mkdir()
        (folder / "plots/one.png").write_bytes(b"1")
        remote.attach_analysis("pets", 1, folder)
    assert remote.analysis_files("pets", 1) == ["plots/one.png", "report.html"]
    assert remote.read_analysis("pets", 1, "report.html") == b"robust"
    with remote.staging("pets") as folder:
        (folder / "report.html").write_text("better")
        remote.attach_analysis("pets", 1, folder)
    assert remote.verify("pets", 1) == []
    assert remote.analysis_files("pets", 1) == ["report.html"]
    for key in remote._bucket.sizes():
        (tmp_path / "copy" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / key).write_bytes(remote._bucket.read(key))
    assert Repository(tmp_path / "copy").verify("pets", 1) == []
    back = Repository(tmp_path / "back")
    assert copy_version(remote, "pets", 1, back) == 1
    assert back.verify("pets", 1) == []
    assert back.read_analysis("pets", 1, "report.html") == b"better"


def test_a_copy_that_is_repeated_finds_itself_and_brings_the_analysis(
    remote: Repository, models: Path
) -> None:
    local = Repository(models)
    build_version(models, "pets", seed=1)
    assert [copy_version(local, "pets", version, remote) for version in (2, 1)] == [1, 2]
    with local.staging("pets") as folder:
        (folder / "report.html").write_text("robust")
        local.attach_analysis("pets", 2, folder)
    assert copy_version(local, "pets", 2, remote) == 1
    assert remote.read_analysis("pets", 1, "report.html") == b"robust"
    assert remote.versions("pets") == [1, 2]


def test_a_copy_that_has_lost_a_file_is_not_taken_for_the_version(
    remote: RemoteRepository, models: Path
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    remote._bucket.delete(["pets/1/model.onnx"])
    assert copy_version(Repository(models), "pets", 1, remote) == 2
    assert remote.verify("pets", 2) == []


def with_large_file(remote: Repository, tmp_path: Path) -> Manifest:
    """pets/1, whose weights come in several pieces."""
    build_version(tmp_path / "big", "pets", extra_files={"weights.safetensors": WEIGHTS})
    copy_version(Repository(tmp_path / "big"), "pets", 1, remote)
    return remote.manifest("pets", 1)


@only_s3
def test_the_page_shows_the_ideal_images_and_downloads_none(
    remote: RemoteRepository, proxy: CutProxy, tmp_path: Path
) -> None:
    with_large_file(remote, tmp_path)
    with remote.staging("pets") as folder:
        (folder / "summary.json").write_bytes(SUMMARY)
        (folder / "ideal").mkdir()
        for picture in ("000-cat", "001-dog"):
            (folder / f"ideal/{picture}.png").write_bytes(WEIGHTS[:MIB])
        remote.attach_analysis("pets", 1, folder)
    proxy.reset()
    models_command(["page", "--models", remote.location])
    assert proxy.down < MIB
    page = remote._bucket.read("index.html").decode()
    for picture in ("000-cat", "001-dog"):
        source = f"pets/1/analysis/ideal/{picture}.png"
        assert f'<img src="{source}"' in page and source in remote._bucket.sizes()


@only_s3
def test_folders_that_a_console_made_are_none_of_the_files(
    remote: RemoteRepository, models: Path
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    root = remote.location.removeprefix(f"s3://{BUCKET}/")
    for key in ("", "pets/", "pets/1/", "pets/1/plots/", "pets/aliases/", "birds/", "birds/1/"):
        remote._bucket._files.call_s3("put_object", Bucket=BUCKET, Key=f"{root}/{key}", Body=b"")
    assert remote.verify("pets", 1) == []
    remote.promote("pets", 1)
    assert (remote.names(), remote.aliases("pets")) == (["pets"], {"stable": 1})


def test_an_altered_object_is_found_and_never_returned(
    remote: RemoteRepository, models: Path
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    manifest = remote.manifest("pets", 1)
    data = bytearray(remote.read_file(manifest, "model.onnx"))
    data[len(data) // 2] ^= 1
    remote._bucket.write("pets/1/model.onnx", bytes(data))
    assert remote.verify("pets", 1) == ["model.onnx is altered: it does not match its digest"]
    with pytest.raises(BrokenVersion, match="is not promoted"):
        remote.promote("pets", 1)
    for path in Path(os.environ["PAWPRINT_CACHE"]).glob("sha256/*"):
        path.unlink()
    with pytest.raises(BrokenVersion, match="model.onnx is altered"):
        remote.read_file(manifest, "model.onnx")
    remote._bucket.delete(["pets/1/golden.npz"])
    remote._bucket.write("pets/1/extra", b"")
    remote._bucket.write("pets/1/model.onnx", bytes(data[:-1]))
    assert remote.verify_to_load("pets", 1) == [
        "golden.npz is missing",
        "model.onnx is not of the right size",
    ]
    assert sorted(remote.verify("pets", 1))[1:] == [
        "golden.npz is missing",
        "model.onnx is altered: it does not match its digest",
    ]


def test_a_damaged_cache_is_mended(remote: Repository, models: Path) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    manifest = remote.manifest("pets", 1)
    data = remote.read_file(manifest, "model.onnx")
    cached = Path(os.environ["PAWPRINT_CACHE"]) / "sha256" / manifest.files["model.onnx"].sha256
    cached.write_bytes(data[:-1] + b"?")
    assert remote.read_file(manifest, "model.onnx") == data == cached.read_bytes()


@only_s3
def test_what_was_not_used_for_a_month_is_removed_from_the_cache(
    remote: RemoteRepository, models: Path, tmp_path: Path
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    remote.write_page(render_page(remote))
    manifest = remote.manifest("pets", 1)
    for file in manifest.files:
        remote.read_file(manifest, file)
    month_ago = time.time() - 31 * 24 * 3600
    used = tmp_path / "cache/sha256" / manifest.files["model.onnx"].sha256
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path != used]
    assert len(files) >= len(manifest.files)
    for path in files:
        os.utime(path, (month_ago, month_ago))
    open_repository(remote.location)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [used]
    os.utime(used, (month_ago, month_ago))
    remote.read_file(manifest, "golden.npz")  # a download, by what has been open all the time
    assert not used.exists()


def test_a_download_goes_on_where_another_stopped(
    remote: Repository, proxy: CutProxy, tmp_path: Path
) -> None:
    manifest = with_large_file(remote, tmp_path)
    part = tmp_path / "cache/partial" / manifest.files["weights.safetensors"].sha256
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(WEIGHTS[: 12 * MIB + 1])
    proxy.reset()
    assert remote.read_file(manifest, "weights.safetensors") == WEIGHTS
    assert proxy.down < 9 * MIB and not part.exists()


def test_a_download_that_was_damaged_here_starts_again(
    remote: Repository, models: Path, tmp_path: Path
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    manifest = remote.manifest("pets", 1)
    sound = Repository(models).read_file(manifest, "model.onnx")
    part = tmp_path / "cache/partial" / manifest.files["model.onnx"].sha256
    part.parent.mkdir(parents=True, exist_ok=True)
    for kept in (len(sound) // 2, len(sound)):
        part.write_bytes(bytes(kept))
        assert remote.read_file(manifest, "model.onnx") == sound and not part.exists()
        (tmp_path / "cache/sha256" / part.name).unlink()


async def test_what_is_no_model_in_the_bucket_stops_no_model(
    remote: RemoteRepository, models: Path
) -> None:
    remote._bucket.write("_old things/pets/1/manifest.json", b"{}")
    copy_version(Repository(models), "pets", 1, remote)
    assert remote.names() == ["pets"]


async def test_a_look_at_models_that_are_as_they_were_is_one_listing(
    remote: RemoteRepository, models: Path, proxy: CutProxy
) -> None:
    names = ("birds", "cats", "pets")
    for name in names[:2]:
        build_version(models, name)
    for name in names:
        copy_version(Repository(models), name, 1, remote)
        remote.promote(name, 1)
    async with running_server(remote.location, control="explicit") as running:
        control = running.server.control
        await control.rescan()
        proxy.reset()
        await control.rescan()
        assert proxy.requests <= 2  # adlfs asks for the container, too
        build_version(models, "pets", seed=1)
        copy_version(Repository(models), "pets", 2, remote)
        remote.promote("pets", 2)
        await control.rescan()
        served = [(s.model, s.version) for s in control.states() if s.default]
        assert served == [("birds", 1), ("cats", 1), ("pets", 2)]
        await control.unload_version("birds", "1")  # and what was asked for by a call is kept
        await control.rescan()
        await control.rescan()
        assert "birds" not in {state.model for state in control.states()}


@only_s3
def test_the_list_reads_two_files_of_each_version_more(
    location: str, models: Path, proxy: CutProxy
) -> None:
    def requests() -> int:
        proxy.reset()
        models_command(["list", "--models", location])
        return proxy.requests

    counted = []
    for versions in ((1, 2), (3, 4, 5)):
        for version in versions:
            build_version(models, "pets", seed=version)
            copy_version(Repository(models), "pets", version, open_repository(location))
        counted.append(requests())
    assert counted[1] - counted[0] == 2 * 3


async def test_a_version_that_was_mended_is_served_without_a_restart(
    remote: RemoteRepository, models: Path
) -> None:
    """Its model had been altered, and was put right with a file of the same size."""
    copy_version(Repository(models), "pets", 1, remote)
    build_version(models, "pets", seed=1)
    copy_version(Repository(models), "pets", 2, remote)
    sound = Repository(models).read_file(remote.manifest("pets", 2), "model.onnx")
    remote._bucket.write("pets/2/model.onnx", bytes(len(sound)))
    async with running_server(remote.location, control="none") as running:
        control = running.server.control
        async with AsyncClient(running.address) as client:
            await control.rescan()
            assert (await client.classify([jpeg()], model="pets")).version == 1
            remote._bucket.write("pets/2/model.onnx", sound)
            await control.rescan()
            assert (await client.classify([jpeg()], model="pets")).version == 2


@only_s3
async def test_a_version_that_could_not_be_loaded_anew_is_tried_again(
    remote: RemoteRepository, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing in the bucket has changed since."""
    copy_version(Repository(models), "pets", 1, remote)

    def no_memory(*arguments: object, **options: object) -> None:
        raise MemoryError

    async with running_server(remote.location, control="none") as running:
        control = running.server.control
        await control.rescan()
        shutil.rmtree(models / "pets/1")
        build_version(models, "pets", seed=7)
        for key in remote._bucket.sizes("pets/1"):  # as a tool of the store's would
            remote._bucket.upload(models / "pets/1" / key, f"pets/1/{key}")
        before = running.server.catalogue
        with monkeypatch.context() as patch:
            patch.setattr("serving.model_control.load_engine", no_memory)
            await control.rescan()
        assert running.server.catalogue is before
        await control.rescan()
        assert running.server.catalogue is not before


@only_s3
async def test_a_load_that_failed_is_not_done_later(
    remote: RemoteRepository, models: Path, proxy: CutProxy
) -> None:
    build_version(models, "pets", seed=1)
    for version in (1, 2):
        copy_version(Repository(models), "pets", version, remote)
    async with running_server(remote.location, versions="latest:1", control="explicit") as running:
        control = running.server.control
        proxy.reset()
        await asyncio.to_thread(remote.resolve, "pets", "1")
        proxy.reset(limit=proxy.down + 100)  # the version is found, and no more
        with pytest.raises(Unavailable):
            await control.load_version("pets", "1")
        proxy.reset()
        await control.rescan()
        assert [state.version for state in control.states()] == [2]
        assert await control.load_version("pets", "1") == (1, 2)


@only_s3
def test_an_interrupted_download_goes_on_where_it_stopped(
    remote: Repository, proxy: CutProxy, tmp_path: Path
) -> None:
    manifest = with_large_file(remote, tmp_path)
    proxy.reset(limit=12 * MIB)
    with pytest.raises(Unavailable, match="can't be used"):
        remote.read_file(manifest, "weights.safetensors")
    (part,) = (tmp_path / "cache" / "partial").glob("[0-9a-f]" * 64)
    came = part.stat().st_size
    assert 0 < came < len(WEIGHTS)
    proxy.reset()
    assert remote.read_file(manifest, "weights.safetensors") == WEIGHTS
    assert proxy.down < len(WEIGHTS) - came + MIB
    proxy.reset()
    assert remote.read_file(manifest, "weights.safetensors") == WEIGHTS
    assert proxy.down == 0 and not part.exists()


@only_s3
def test_a_publication_that_is_cut_off_is_never_seen(
    remote: Repository, proxy: CutProxy, tmp_path: Path
) -> None:
    build_version(tmp_path / "big", "pets", extra_files={"weights.safetensors": WEIGHTS})
    proxy.reset(limit=10 * MIB)
    with pytest.raises(Unavailable):
        copy_version(Repository(tmp_path / "big"), "pets", 1, remote)
    proxy.reset()
    assert (remote.names(), remote.versions("pets")) == ([], [])
    assert copy_version(Repository(tmp_path / "big"), "pets", 1, remote) == 2
    assert remote.versions("pets") == [2] and remote.verify("pets", 2) == []


def analyse(remote: Repository, files: dict[str, bytes]) -> None:
    """Make these the analysis of pets/1."""
    with remote.staging("pets") as folder:
        for file, data in files.items():
            (folder / file).write_bytes(data)
        remote.attach_analysis("pets", 1, folder)


def analysis(remote: Repository) -> dict[str, bytes | None]:
    return {
        file: remote.read_analysis("pets", 1, file) for file in remote.analysis_files("pets", 1)
    }


@only_s3
def test_a_first_analysis_whose_upload_is_cut_off_is_none(
    remote: Repository, proxy: CutProxy, models: Path
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    proxy.reset(MIB)
    with pytest.raises(Unavailable):
        analyse(remote, {"a.html": b"robust", "b.png": WEIGHTS[: 2 * MIB]})
    proxy.reset()
    assert analysis(remote) == {} and remote.verify("pets", 1) == []
    remote.promote("pets", 1)


@pytest.mark.parametrize("store", ["s3", *LATER], indirect=True)
def test_an_analysis_that_is_cut_off_anywhere_is_the_one_before_or_the_new_one(
    remote: RemoteRepository, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    before = {"report.html": b"robust", "gone.png": b"gone", "same.png": b"same"}
    after = {"report.html": b"better", "new.png": b"new", "same.png": b"same"}
    requests = 0
    most: float = float("inf")

    def cut(request: Callable[..., None]) -> Callable[..., None]:
        def until_cut(*what: Any) -> None:
            nonlocal requests
            if requests >= most:
                raise Unavailable("cut")
            requests += 1
            request(*what)

        return until_cut

    one = remote._bucket.delete
    for name in ("upload", "write"):
        monkeypatch.setattr(remote._bucket, name, cut(getattr(remote._bucket, name)))
    delete_one = cut(lambda key: one([key]))
    monkeypatch.setattr(remote._bucket, "delete", lambda keys: [delete_one(k) for k in keys])
    found = []
    whole = False
    while not whole:
        requests, most = 0, float("inf")
        analyse(remote, before)
        assert analysis(remote) == before
        requests, most = 0, len(found)
        try:
            analyse(remote, after)
            whole = True
        except Unavailable:
            pass
        found.append(analysis(remote))
        assert remote.verify("pets", 1) == []
    assert len(found) > 10
    changed = found.index(after)
    assert all(one == before for one in found[:changed]) and changed > 3
    assert all(one == after for one in found[changed:])
    assert set(remote._bucket.sizes("pets/1/analysis")) == {"digests.json", *after}
    remote.promote("pets", 1)


@only_s3
def test_a_publication_that_is_cut_off_after_its_manifest_is_one(
    remote: RemoteRepository,
    proxy: CutProxy,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = remote._bucket.write

    def cut_after_manifest(key: str, data: bytes) -> None:
        write(key, data)
        if key.endswith("/manifest.json"):
            proxy.reset(limit=0)

    monkeypatch.setattr(remote._bucket, "write", cut_after_manifest)
    assert copy_version(Repository(models), "pets", 1, remote) == 1
    assert "pets/1 is published, but config.pbtxt beside it can't be written: s3" in caplog.text
    build_version(models, "pets", seed=1)
    with Repository(models).staging("pets") as folder:
        (folder / "report.html").write_text("robust")
        Repository(models).attach_analysis("pets", 2, folder)
    proxy.reset()
    with pytest.raises(
        Unavailable, match="is pets/2 in s3://.* now, but its analysis is not there"
    ):
        copy_version(Repository(models), "pets", 2, remote)
    proxy.reset()
    assert remote.versions("pets") == [1, 2] and remote.verify("pets", 2) == []
    assert copy_version(Repository(models), "pets", 2, remote) == 2
    assert remote.read_analysis("pets", 2, "report.html") == b"robust"


def test_publishers_at_once_get_numbers_of_their_own(location: str, models: Path) -> None:
    numbers: list[int] = []
    for seed in range(1, 6):
        build_version(models, "pets", seed=seed)

    def publish(version: int) -> None:
        remote = open_repository(location)
        numbers.append(copy_version(Repository(models), "pets", version, remote))

    threads = [threading.Thread(target=publish, args=(version,)) for version in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remote = open_repository(location)
    assert sorted(numbers) == remote.versions("pets") == [1, 2, 3, 4, 5, 6]
    assert all(remote.verify("pets", number) == [] for number in numbers)


def test_promotions_at_once_all_stay_in_the_history(location: str, models: Path) -> None:
    remote = open_repository(location)
    for version in range(1, 6):
        copy_version(Repository(models), "pets", version, remote)
        build_version(models, "pets", seed=version)
    ready = threading.Barrier(5)

    def promote(version: int) -> None:
        repository = open_repository(location)
        assert repository.aliases("pets") == {}
        ready.wait()
        repository.promote("pets", version)

    threads = [threading.Thread(target=promote, args=(version,)) for version in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = [remote.resolve("pets"), *(remote.rollback("pets") for _ in range(4))]
    assert sorted(history) == [1, 2, 3, 4, 5]
    with pytest.raises(NotFound, match="no earlier version"):
        remote.rollback("pets")


@only_s3
def test_a_rollback_whose_answer_is_lost_is_one(
    remote: RemoteRepository, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the library sees it that asks again: its own write is what it finds changed."""
    for version in (1, 2, 3):
        copy_version(Repository(models), "pets", version, remote)
        remote.promote("pets", version)
        build_version(models, "pets", seed=version)
    replace = remote._bucket.replace

    def lost(key: str, data: bytes, stamp: str) -> bool:
        assert replace(key, data, stamp)
        return replace(key, data, stamp)

    monkeypatch.setattr(remote._bucket, "replace", lost)
    assert remote.rollback("pets") == 2 and remote.resolve("pets") == 2


def test_a_server_serves_a_bucket_and_the_next_one_its_cache(
    remote: RemoteRepository,
    models: Path,
    proxy: CutProxy,
    start: Callable[..., ServerProcess],
) -> None:
    extra = {"weights.safetensors": WEIGHTS}  # which no server needs
    version = build_version(models, "pets", extra_files=extra)
    copy_version(Repository(models), "pets", version, remote)
    downloaded = []
    for _ in range(2):
        proxy.reset()
        server = start(remote.location, "--control", "none")  # looks are downloads too
        with Client(server.address) as client:
            response = client.classify([jpeg()], model="pets")
        assert response.version == 1 and response.results[0].labels
        status, _, log = server.stop()
        assert status == 0
        assert len(log.splitlines()) < 10  # not some of each request
        downloaded.append(proxy.down)
    model_bytes = remote.manifest("pets", 1).files["model.onnx"].size
    assert downloaded[0] < MIB and downloaded[1] <= downloaded[0] - model_bytes


@pytest.mark.parametrize(("command", "status"), [("models", 1), ("serve", 2)])
@pytest.mark.parametrize(
    "store",
    [
        "s3",
        pytest.param("gs", marks=pytest.mark.slow),  # asks six times, for half a minute
        pytest.param("az", marks=pytest.mark.slow),  # four times, for over a minute
    ],
    indirect=True,
)
def test_a_store_that_can_not_be_reached_is_one_line(
    command: str, status: int, store: ObjectStore, proxy: CutProxy
) -> None:
    own = ["list"] if command == "models" else ["--device", "cpu", "--port", "0"]
    proxy.close()
    done = run_python(
        "-m", f"serving.{command}", *own, "--models", f"{store.scheme}://{BUCKET}/x", timeout=200
    )
    assert done.returncode == status and "Traceback" not in done.stderr
    said = f"error: {store.scheme}://{BUCKET}/x can't be used: "
    assert any(said in line and "connect" in line.lower() for line in done.stderr.splitlines())


def test_a_bucket_that_is_not_there_is_told(
    store: ObjectStore, proxy: CutProxy, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    location = f"{store.scheme}://nowhere/x"
    nowhere, photos = open_repository(location), BucketPlace(Bucket(location))
    for use in (
        nowhere.names,
        lambda: copy_version(Repository(models), "pets", 1, nowhere),
        photos.photos,
    ):
        with pytest.raises(Unavailable) as caught:
            use()
        assert str(caught.value) == f"{location} can't be used: there is no such bucket"
    assert caplog.records == []


@pytest.mark.parametrize("store", ["s3", "az"], indirect=True)  # gs says not what it lacks
def test_a_bucket_that_goes_away_is_not_the_fault_of_one_photo(
    store: ObjectStore, proxy: CutProxy
) -> None:
    with pytest.raises(Unavailable, match="no such bucket"):
        BucketPlace(Bucket(f"{store.scheme}://nowhere/x")).read("one.jpg")
    with pytest.raises(FileNotFoundError):
        BucketPlace(Bucket(f"{store.scheme}://{BUCKET}/x")).read("one.jpg")


@only_s3
def test_a_store_that_takes_connections_and_never_answers_is_not_waited_for_long(
    proxy: CutProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        silent.setblocking(False)
        bucket = Bucket(f"s3://{BUCKET}/x")
        uses = (
            (bucket.stored, 2),
            (lambda: bucket.read("key"), 4),
            (lambda: bucket.write("k", b"k"), 2),
        )
        for use, most in uses:
            with pytest.raises(Unavailable, match="[Tt]imeout"):
                use()
            assert _taken(silent) <= most


def _taken(listener: socket.socket) -> int:
    """How many connections wait there."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


@only_s3
def test_an_answer_that_breaks_off_is_asked_for_again(
    remote: Repository, proxy: CutProxy, tmp_path: Path
) -> None:
    manifest = with_large_file(remote, tmp_path)
    proxy.reset(limit=4 * MIB, cuts=4)
    assert remote.read_file(manifest, "weights.safetensors") == WEIGHTS and proxy.cuts == 0


@pytest.mark.parametrize(
    ("error", "times", "said"),
    [(TimeoutError, 3, "it does not answer in time"), (ValueError, 1, "ValueError")],
)
def test_an_answer_that_breaks_off_each_time_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], times: int, said: str
) -> None:
    pytest.importorskip("s3fs")
    bucket, asked = Bucket("s3://bucket/x"), []

    def fails(path: str, **how: int) -> bytes:
        asked.append(path)
        raise error if len(asked) < 9 else OSError

    monkeypatch.setattr(bucket._files, "cat_file", fails)
    with pytest.raises(Unavailable, match=f"^s3://bucket/x can't be used: {said}$"):
        bucket.read("key")
    assert asked == ["bucket/x/key"] * times


@only_s3
def test_a_store_that_refuses_every_conditional_write_is_not_asked_for_ever(
    remote: RemoteRepository, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_version(Repository(models), "pets", 1, remote)
    monkeypatch.setattr(remote._bucket, "create", lambda key, data: False)
    with pytest.raises(Unavailable, match=r"conditional writes .* to pets/aliases/stable were"):
        remote.promote("pets", 1)
    build_version(models, "pets", seed=1)
    with pytest.raises(Unavailable, match=r"conditional writes .* to pets/.claims were refused"):
        copy_version(Repository(models), "pets", 2, remote)


@pytest.mark.parametrize("store", ["s3", "az"], indirect=True)  # that of gs asks for no credentials
def test_wrong_credentials_are_told(
    store: ObjectStore,
    proxy: CutProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = base64.b64encode(b"wrong").decode()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    if connection := os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        changed = connection.replace(AZURE_KEY, wrong)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", changed)
    with pytest.raises(Unavailable) as caught:
        open_repository(f"{store.scheme}://{BUCKET}/x").names()
    assert str(caught.value).startswith(f"{store.scheme}://{BUCKET}/x can't be used: ")
    assert wrong not in str(caught.value)
    if store.scheme == "s3":
        assert str(caught.value).endswith(" (ListObjectsV2)")
    assert "\n" not in str(caught.value) and caplog.records == []


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("ftp://host/models", "a bucket is one of s3://, gs://, az://"),
        ("s3://", "a bucket is named s3://BUCKET/PREFIX"),
        ("s3://key:secret@bucket/x", "credentials come from the environment alone"),
        ("s3://bucket/x?versionId=1", "a bucket is named s3://BUCKET/PREFIX"),
        ("s3:/bucket/x", "a bucket is named s3://BUCKET/PREFIX"),
    ],
)
def test_a_wrong_location_says_what_is_right(wrong: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_repository(wrong)
    assert said in str(caught.value)


def test_a_folder_is_a_repository_too(models: Path, tmp_path: Path) -> None:
    assert type(open_repository(models)) is Repository
    with pytest.raises(NotFound, match="no model repository at"):
        open_repository(tmp_path / "nowhere", must_exist=True)


@pytest.mark.parametrize(("location", "package"), [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs")])
def test_a_bucket_whose_package_can_not_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, package: str
):
    (tmp_path / f"{package}.py").write_text("raise ImportError('libssl.so: no file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InvalidRequest, match=rf"{package}, which can't be loaded \(libssl.so: no"):
        Bucket(location)
