"""The oldest packages that pyproject.toml allows are enough."""

import csv
import io
import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.client import Client
from serving.repository import Repository
from tests.azure_store import running_azure_store
from tests.conftest import ROOT, ServerProcess
from tests.environments import environment_with
from tests.google_store import running_google_store
from tests.object_store import BUCKET, running_store
from tests.photos import jpeg
from tests.serving.test_tritonclient import TRITONCLIENT
from tests.tiny import LABELS
from trainer.cartoons import write_cartoons

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed(extra: str) -> Iterator[str]:
    """What an extra asks for, with that of the extras it names."""
    for requirement in PROJECT["optional-dependencies"][extra]:
        if also := re.fullmatch(r"pawprint\[(\S+)\]", requirement):
            for other in also[1].split(","):
                yield from needed(other)
        else:
            yield requirement


CALLING = """
import asyncio, io, json, sys
from google import protobuf
from PIL import Image
from serving.client import AsyncClient, Client
from serving.errors import InvalidRequest, NotFound

photos = [bytes.fromhex(line) for line in sys.stdin]

async def later(address):
    async with AsyncClient(address) as client:
        one = await client.classify(photos, model="pets")
        return one, [answer async for answer in client.stream(photos, model="pets")]

with Client(sys.argv[1], hedge_after_s=5) as client:
    one = client.classify(photos, model="pets")
    streamed = list(client.stream(photos, model="pets"))
    for wrong, what in (({"model": "cars"}, NotFound), ({"top_k": -1}, InvalidRequest)):
        try:
            client.classify(photos, **{"model": "pets", **wrong})
        except what:
            continue
        raise AssertionError(wrong)
    opened = [Image.open(io.BytesIO(photo)) for photo in photos]
    assert len(client.classify(opened, model="pets").results) == 2
    labels = client.get_model("pets").labels
other, also = asyncio.run(later(sys.argv[1]))
print(json.dumps([
    *([result.label.name for result in response.results] for response in (one, other)),
    *([answer.result.label.name for answer in answers] for answers in (streamed, also)),
    list(labels),
    protobuf.__version__,
]))
"""


OLDEST = ("--resolution", "lowest-direct", "--only-binary", ":all:")  # built for this Python


@pytest.mark.parametrize("name, others", [("oldest", OLDEST), ("tritonclient", (TRITONCLIENT,))])
def test_a_client_runs_beside_what_other_services_have(
    pytestconfig: pytest.Config,
    server: ServerProcess,
    name: str,
    others: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """Many, such as tritonclient, hold protobuf below 7."""
    packages = (*others, *PROJECT["dependencies"], *needed("client"))
    python = environment_with(pytestconfig.cache, f"client-{name}", *packages)
    done = subprocess.run(
        [python / "bin/python", "-W", "error", "-c", CALLING, server.address],
        cwd=ROOT,
        input="".join(f"{jpeg(seed=seed).hex()}\n" for seed in (1, 2)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *answered, labels, protobuf = json.loads(done.stdout)
    assert labels == list(LABELS) and protobuf.startswith("6.")
    assert len(answered) == 4 and answered[1:] == answered[:-1] and len(answered[0]) == 2
    for seed in (1, 2):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(seed=seed))
    command = ("-m", "serving.classify", tmp_path, "--address", server.address, "--csv")
    done = subprocess.run(
        [python / "bin/python", *command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["label"] for row in rows if row["rank"] == "1"] == answered[0]


@pytest.mark.slow
def test_the_oldest_packages_train_analyse_and_serve(
    pytestconfig: pytest.Config, start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    packages = (*PROJECT["dependencies"], *needed("train"))
    assert "torch>=2.11" in packages
    python = environment_with(pytestconfig.cache, "oldest", *OLDEST, *packages) / "bin/python"
    photos, models = tmp_path / "photos", tmp_path / "models"
    write_cartoons(photos, per_class=8)
    for command in (
        (
            *("trainer.train", "--data", photos, "--name", "pets", "--out", models),
            *("--backbone", "tiny", "--weights", "none", "--size", "32", "--epochs", "1"),
            *("--int8", "--fp16", "--max-accuracy-loss", "1"),
        ),
        (
            *("trainer.analysis.analyze", "--data", photos, "--models", models, "pets"),
            *("--budget", "quick", "--photos", "4"),
        ),
    ):
        done = subprocess.run(
            [python, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
    assert set(Repository(models).manifest("pets", 1).variants) == {"fp32", "int8", "fp16"}
    with Client(start(models, python=python).address) as client:
        assert client.classify([jpeg()], model="pets").results[0].label.probability > 0


# fsspec 2025.3 asks for asyncio's policy, and sets it; Python 3.14 still has it.
STRICT = (
    *("-W", "error"),
    *("-W", "ignore:'asyncio.get_event_loop_policy':DeprecationWarning"),
    *("-W", "ignore:'asyncio.set_event_loop_policy':DeprecationWarning"),
)
READING = """
import io, json, sys
import fsspec, pyarrow.parquet

(part,) = fsspec.open_files(sys.argv[1])
with part as opened:
    content = io.BytesIO(opened.read())
rows = pyarrow.parquet.ParquetFile(content, pre_buffer=False).read(use_threads=False)
print(json.dumps(rows["label"].to_pylist()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_the_oldest_packages_of_a_store_serve_from_it_and_write_parquet_to_it(
    pytestconfig: pytest.Config,
    start: Callable[..., ServerProcess],
    models: Path,
    scheme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extras = (*needed("serve-cpu"), *needed("parquet"), *needed(scheme))
    packages = (*OLDEST, *PROJECT["dependencies"], *extras)
    python = environment_with(pytestconfig.cache, f"oldest-{scheme}", *packages) / "bin/python"
    folder, photos = tmp_path / "store", tmp_path / "photos"
    folder.mkdir()
    photos.mkdir()
    for seed in range(3):
        (photos / f"{seed}.jpg").write_bytes(jpeg(seed=seed))
    starting = {
        "s3": lambda: running_store(folder),
        "gs": lambda: running_google_store(folder),
        "az": lambda: running_azure_store(folder, pytestconfig.cache),
    }
    with starting[scheme]() as store:
        store.put_into(monkeypatch)
        monkeypatch.setenv("PAWPRINT_CACHE", str(tmp_path / "cache"))
        there = f"{scheme}://{BUCKET}/models"

        def run(*command: str | Path) -> str:
            done = subprocess.run(
                [python, *STRICT, *command],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run("-m", "serving.models", "copy", "--models", models, "pets/1", "--to", there)
        address = start(there, python=python).address
        results = f"{scheme}://{BUCKET}/results"
        run("-m", "serving.classify", photos, "--address", address, "--out", results)
        labels = json.loads(run("-c", READING, f"{results}/*.parquet"))
    assert len(labels) == 3 and set(labels) <= set(LABELS)
