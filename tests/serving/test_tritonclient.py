"""NVIDIA's tritonclient, unchanged, calls a server: the Open Inference Protocol from outside."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.modelspec import Preprocessing
from serving.preprocess import preprocess
from tests.conftest import ROOT, Running, running_server
from tests.environments import environment_with
from tests.photos import jpeg
from tests.tiny import build_version, familiarity_of, logits_of, softmax

TRITONCLIENT = "tritonclient[grpc]==2.73.0"
ASK_FOR_FAMILIARITY = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
pixels = np.load(sys.argv[2])
given = triton.InferInput("image", pixels.shape, "UINT8")
given.set_data_from_numpy(pixels)
asked = triton.InferRequestedOutput("familiarity")
client = triton.InferenceServerClient(sys.argv[1])
print(json.dumps(client.infer("pets", [given], outputs=[asked]).as_numpy("familiarity").tolist()))
"""


async def test_tritonclient_gets_what_the_model_says(
    running: Running, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    folder = environment_with(pytestconfig.cache, "tritonclient", TRITONCLIENT)
    photos = [jpeg(seed=seed) for seed in range(5)]
    for index, photo in enumerate(photos):
        (tmp_path / f"{index}.jpg").write_bytes(photo)
    spec = Preprocessing(size=32, interpolation="bilinear")
    pixels = np.stack([preprocess(photo, spec) for photo in photos])
    np.save(tmp_path / "pixels.npy", pixels)
    process = await asyncio.create_subprocess_exec(
        *(folder / "bin/python", ROOT / "tests/serving/triton_calls.py"),
        *(running.address, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    report: dict[str, Any] = json.loads(out)

    assert report["live"] and report["ready"] and report["model_ready"]
    assert not report["other_ready"]
    assert report["server"]["name"] == "pawprint"
    assert report["model"]["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": ["-1", "32", "32", "3"]}
    ]
    assert [output["shape"] for output in report["model"]["outputs"]] == [["-1", "2"]] * 2
    assert report["config"]["config"]["max_batch_size"] == 64
    assert report["index"]["models"] == [{"name": "pets", "version": "1", "state": "READY"}]

    logits = logits_of(pixels)
    for way in ("photos", "column", "pixels", "async", "aio"):
        assert np.allclose(report[way]["logits"], logits, atol=1e-4), way
        assert np.allclose(report[way]["probabilities"], softmax(logits), atol=1e-4), way
    assert report["id"] == "7"
    for index, answer in report["stream"].items():
        assert np.allclose(answer["logits"], logits[int(index)][None], atol=1e-4)
    assert sorted(report["stream"]) == ["0", "1", "2"]
    for texts, row in zip(report["classes"], softmax(logits), strict=True):
        (p, first, name), second = texts[0].split(":"), texts[1].split(":")
        assert int(first) == row.argmax() and name == ("cat", "dog")[row.argmax()]
        assert float(p) == pytest.approx(row.max(), abs=1e-4) and len(second) == 3

    assert report["no_model"][0] == "StatusCode.NOT_FOUND"
    assert "no model 'cars' is served" in report["stream_error"]
    assert report["bad_photo"][0] == "StatusCode.INVALID_ARGUMENT"
    assert report["bad_photo"][1].startswith("photo 1 of 2, from 0: not an image")
    assert "must have the shape [n, 32, 32, 3]; got [5, 31, 32, 3]" in report["bad_shape"][1]
    assert report["late"][0] == "StatusCode.DEADLINE_EXCEEDED"

    (statistics,) = report["statistics"]["model_stats"]
    counted = statistics["inference_stats"]
    assert int(statistics["inference_count"]) == 5 * 7 + 3
    assert int(counted["success"]["count"]) == 7 + 3 and int(counted["fail"]["count"]) == 2
    assert 0 < int(statistics["execution_count"]) <= 5 * 7 + 3
    assert 0 < int(counted["compute_infer"]["ns"]) < int(counted["success"]["ns"])


async def test_it_gets_how_familiar_the_photos_are(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    folder = environment_with(pytestconfig.cache, "tritonclient", TRITONCLIENT)
    build_version(tmp_path / "models", "pets", familiar=True)
    pixels = np.random.default_rng(9).integers(0, 256, (3, 32, 32, 3), np.uint8)
    pixels[1] = 0
    np.save(tmp_path / "pixels.npy", pixels)
    async with running_server(tmp_path / "models") as running:
        process = await asyncio.create_subprocess_exec(
            *(folder / "bin/python", "-c", ASK_FOR_FAMILIARITY),
            *(running.address, str(tmp_path / "pixels.npy")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    assert np.allclose(json.loads(out), familiarity_of(pixels), atol=1e-6)
