"""The Job of deploy/batch: the command of each of its pods, against a real server."""

import asyncio
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.batch_job import PATIENCE_S
from serving.batch_plan import PART_PHOTOS
from serving.settings import ENVIRONMENT
from tests.conftest import ROOT, Running
from tests.deploy.test_manifests import PATH, SERVERS, rendered
from tests.photos import jpeg


def labels_of(resource: dict) -> dict[str, str]:
    return resource["spec"]["template"]["metadata"]["labels"]


def test_the_server_lets_its_pods_in() -> None:
    (job,) = (r for r in rendered("batch") if r["kind"] == "Job")
    (policy,) = (r for r in rendered("overlays/cpu") if r["kind"] == "NetworkPolicy")
    (source,) = policy["spec"]["ingress"][0]["from"]
    assert source["podSelector"]["matchLabels"].items() <= labels_of(job).items()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (service,) = (
        r["metadata"]["name"]
        for r in rendered("overlays/cpu")
        if r["kind"] == "Service" and r["spec"].get("clusterIP") == "None"
    )
    assert f"--address=dns:///{service}:50051" in container["args"]


@pytest.mark.parametrize("overlay", SERVERS)
def test_it_waits_until_every_server_has_looked_for_a_new_version(overlay: str) -> None:
    data = [r["data"] for r in rendered(overlay) if r["kind"] == "ConfigMap"]
    (given,) = (d for d in data if "PAWPRINT_CACHE" in d)
    assert float(given[f"{ENVIRONMENT}POLL_S"]) <= PATIENCE_S / 2


async def test_its_pods_make_every_part_between_them(running: Running, tmp_path: Path) -> None:
    (spec,) = (r["spec"] for r in rendered("batch") if r["kind"] == "Job")
    pods = spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    photos, out = tmp_path / "photos", tmp_path / "results"
    photos.mkdir()
    (photos / "0.jpg").write_bytes(jpeg())
    for number in range(1, PART_PHOTOS + 1):
        os.link(photos / "0.jpg", photos / f"{number}.jpg")
    for index in (0, 1, pods - 1):
        command = [*container["command"], *container["args"]]
        for given, here in {
            "s3://pawprint/photos": str(photos),
            "s3://pawprint/results.parquet": str(out),
            "dns:///pawprint-headless:50051": running.address,
            "$(JOB_COMPLETION_INDEX)": str(index),
        }.items():
            command = [text.replace(given, here) for text in command]
        environment = os.environ | {"PATH": PATH, "PYTHONPATH": str(ROOT)}
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
    parts = sorted(out.glob("*.parquet"))
    rows = [pq.read_table(part)["label"].to_pylist() for part in parts]
    assert [len(one) for one in rows] == [PART_PHOTOS, 1] and None not in sum(rows, [])
