"""buf on our protos: lint, breaking changes since the last release, calls by reflection."""

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Running
from tests.environments import npm_folder_with
from tests.photos import jpeg

PROTOS = ROOT / "protos"
BUF = "@bufbuild/buf@1.75.0"


@pytest.fixture(scope="module")
def buf(pytestconfig: pytest.Config) -> Path:
    return npm_folder_with(pytestconfig.cache, "buf", BUF) / "node_modules/.bin/buf"


def run(buf: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([buf, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def breaking(buf: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    return run(buf, folder, "breaking", "--against", str(PROTOS / "baseline.binpb"))


def copy_of_protos(tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(
            PROTOS, tmp_path / "protos", ignore=shutil.ignore_patterns("*.py*", "__pycache__")
        )
    )


def test_lint_finds_nothing(buf: Path) -> None:
    done = run(buf, PROTOS, "lint")
    assert done.returncode == 0, done.stdout


def test_nothing_breaks_the_callers_of_the_last_release(buf: Path) -> None:
    done = breaking(buf, PROTOS)
    assert done.returncode == 0, done.stdout


def test_a_breaking_change_would_be_found(buf: Path, tmp_path: Path) -> None:
    folder = copy_of_protos(tmp_path)
    proto = folder / "pawprint/v1/classifier.proto"
    text = proto.read_text()
    proto.write_text(text.replace("repeated bytes images = 3;", "repeated bytes images = 30;"))
    done = breaking(buf, folder)
    assert done.returncode != 0 and "images" in done.stdout


def test_a_new_field_is_no_breaking_change(buf: Path, tmp_path: Path) -> None:
    folder = copy_of_protos(tmp_path)
    proto = folder / "pawprint/v1/classifier.proto"
    text = proto.read_text()
    place = "repeated bytes images = 3;"
    proto.write_text(text.replace(place, f"{place}\n  // New.\n  string note = 99;"))
    done = breaking(buf, folder)
    assert done.returncode == 0, done.stdout


async def test_buf_curl_calls_the_server_by_reflection(buf: Path, running: Running) -> None:
    async def call(method: str, request: dict[str, object]) -> dict[str, object]:
        process = await asyncio.create_subprocess_exec(
            *(buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect"),
            *("--data", "@-", f"http://{running.address}/{method}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        given = json.dumps(request).encode()
        out, err = await asyncio.wait_for(process.communicate(given), 60)
        assert process.returncode == 0, err.decode()
        answer: dict[str, object] = json.loads(out)
        return answer

    models = await call("pawprint.v1.ClassifierService/ListModels", {})
    (model,) = models["models"]
    assert (model["name"], model["versions"]) == ("pets", [1])
    photo = base64.b64encode(jpeg()).decode()
    answer = await call(
        "pawprint.v1.ClassifierService/Classify", {"model": "pets", "images": [photo]}
    )
    (result,) = answer["results"]
    assert result["classification"]["labels"][0]["name"] in ("cat", "dog")
    ready = await call("inference.GRPCInferenceService/ModelReady", {"name": "pets"})
    assert ready == {"ready": True}
