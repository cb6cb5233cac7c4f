"""The Jobs of deploy/training: what their containers run is run here, on small photos."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.repository import Repository
from tests.conftest import ROOT
from tests.deploy.test_manifests import PATH, pod_specs, rendered
from tests.object_store import s3_environment
from tests.ports import free_port
from tests.tiny import build_version
from trainer.cartoons import write_cartoons

SMALL = ("--backbone", "tiny", "--weights", "none", "--size", "32", "--epochs", "1")
QUICK = ("--budget", "quick", "--photos", "12", "--ideal", "none")
PODS = 2


def job(name: str) -> dict[str, Any]:
    (spec,) = (
        r["spec"]
        for r in rendered("training")
        if r["kind"] == "Job" and r["metadata"]["name"] == name
    )
    return spec


def start(container: dict[str, Any], work: Path, *more: str, **given: str) -> subprocess.Popen[str]:
    """Its command, with /work at `work` and the environment given in place of the cluster's."""
    plain = {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}
    command = [*container["command"], *container.get("args", []), *more]
    command = [text.replace("/work/", f"{work}/") for text in command]
    command = [text.replace("/release/", f"{ROOT}/deploy/training/") for text in command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | plain | given
    environment |= {"TORCH_HOME": str(work / "torch")}
    return subprocess.Popen(
        command,
        env=environment | {"PATH": PATH, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def start_training(work: Path, *more: str, **given: str) -> list[subprocess.Popen[str]]:
    spec = job("pawprint-train")
    assert spec["completions"] == spec["parallelism"] == PODS
    (container,) = spec["template"]["spec"]["containers"]
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [start(container, work, *more, RANK=str(rank), **given) for rank in range(PODS)]


def final_statuses(name: str) -> list[int]:
    """Those that end the Job at once, as trying again would change nothing."""
    rules = job(name)["podFailurePolicy"]["rules"]
    (found,) = (rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob")
    return found


def test_what_may_pass_is_tried_again_and_what_would_stay_ends_the_job() -> None:
    assert final_statuses("pawprint-train") == [2]
    assert final_statuses("pawprint-release") == [1, 2]  # 1: the gate says no
    assert all(job(name)["backoffLimit"] > 0 for name in ("pawprint-train", "pawprint-release"))


def test_a_volume_that_fails_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "releases").touch()  # no folder can be made there
    status, said = gate(tmp_path)
    assert status == os.EX_TEMPFAIL and status not in final_statuses("pawprint-release"), said


@pytest.mark.parametrize("file", ["listed", "newest", "version"])
def test_a_file_that_the_volume_does_not_take_or_give_is_tried_again(
    tmp_path: Path, file: str
) -> None:
    """As on a disk that is full: a folder stands where the file is to be."""
    build_version(tmp_path / "models", "pets")
    (tmp_path / "releases/one" / file).mkdir(parents=True)
    status, said = gate(tmp_path)
    assert status == os.EX_TEMPFAIL, said


def test_a_choice_that_can_not_be_read_releases_no_other_version(tmp_path: Path) -> None:
    build_version(tmp_path / "models", "pets")
    (tmp_path / "releases/one/version").mkdir(parents=True)
    status, said = promotion(tmp_path)
    assert status != 0 and Repository(tmp_path / "bucket").names() == [], said


def test_the_training_is_complete_once_the_pod_that_publishes_is() -> None:
    spec = job("pawprint-train")
    assert spec["completionMode"] == "Indexed"
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}


def test_nothing_runs_before_the_photos_are_there() -> None:
    assert job("pawprint-train")["suspend"] and job("pawprint-release")["suspend"]
    resources = rendered("training")
    (claim,) = (r for r in resources if r["kind"] == "PersistentVolumeClaim")
    (pod,) = rendered("training/photos")
    name = claim["metadata"]["name"]
    used = [*pod_specs(resources), pod["spec"]]
    assert {p["persistentVolumeClaim"]["claimName"] for p in map(work_of, used)} == {name}
    assert len({str(p["securityContext"]) for p in used}) == 1  # what one wrote, the others read
    page = (ROOT / "docs/kubernetes.md").read_text()
    steps = [
        "kubectl apply -k deploy/training\n",
        "kubectl apply -k deploy/training/photos ",
        f"kubectl wait --for=condition=ready pod/{pod['metadata']['name']} ",
        f"kubectl cp photos {pod['metadata']['name']}:/work\n",
        'kubectl patch job pawprint-train -p \'{"spec":{"suspend":false}}\'\n',
        "kubectl wait --for=condition=complete job/pawprint-train ",
        'kubectl patch job pawprint-release -p \'{"spec":{"suspend":false}}\'\n',
        "kubectl wait --for=condition=complete job/pawprint-release ",
    ]
    places = [page.index(step) for step in steps]
    assert places == sorted(places)


def work_of(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = (volume for volume in pod["volumes"] if volume["name"] == "work")
    return found


def test_photos_may_lie_in_a_bucket_and_weights_are_downloaded_once() -> None:
    (train,) = job("pawprint-train")["template"]["spec"]["containers"]
    release = job("pawprint-release")["template"]["spec"]
    for container in (train, *release["initContainers"], *release["containers"]):
        assert container["envFrom"] == [
            {"secretRef": {"name": "pawprint-bucket", "optional": True}}
        ]
    homes = [one["value"] for one in train["env"] if one["name"] in ("TORCH_HOME", "HF_HOME")]
    assert len(homes) == 2 and all(home.startswith("/work/") for home in homes)


def test_a_wrong_argument_ends_the_training_at_once(tmp_path: Path) -> None:
    for pod in start_training(tmp_path, *SMALL, "--interpolation", "bilinear", "--epochs", "-1"):
        status, said = ended(pod)
        assert status in final_statuses("pawprint-train") and said.startswith("error: epochs"), said


@pytest.mark.slow
def test_the_pods_train_one_version_together(tmp_path: Path) -> None:
    write_cartoons(tmp_path / "photos", per_class=16)
    for pod in start_training(tmp_path, *SMALL):
        status, said = ended(pod)
        assert status == 0, said
    assert Repository(tmp_path / "models").versions("pets") == [1]
    assert (tmp_path / "checkpoints").is_dir()


def gate(work: Path, *more: str) -> tuple[int, str]:
    (container,) = job("pawprint-release")["template"]["spec"]["initContainers"]
    return ended(start(container, work, *more, **places(work)))


def promotion(work: Path) -> tuple[int, str]:
    (container,) = job("pawprint-release")["template"]["spec"]["containers"]
    return ended(start(container, work, **places(work)))


def places(work: Path) -> dict[str, str]:
    state = work / "releases/one"
    return {"FROM": f"{work}/models", "TO": f"{work}/bucket", "STATE": str(state)}


def test_a_release_that_is_tried_again_is_of_the_same_version_and_copies_it_once(
    tmp_path: Path,
) -> None:
    models, bucket = Repository(tmp_path / "models"), Repository(tmp_path / "bucket")
    for seed in range(2):
        build_version(models.root, "pets", seed=seed)
    models.promote("pets", 1)
    build_version(bucket.root, "pets", seed=5)
    state = tmp_path / "releases/one"
    state.mkdir(parents=True)
    (state / "passed").touch()  # what the gate does: see the slow test
    for _ in range(2):
        status, said = gate(tmp_path)
        assert status == 0, said
        assert (state / "version").read_text() == "2\n"
        status, said = promotion(tmp_path)
        assert (status, said) == (0, "stable of pets is now version 2\n")
        assert bucket.aliases("pets") == {"stable": 2} and bucket.versions("pets") == [1, 2]
        copied, newest = bucket.manifest("pets", 2), models.manifest("pets", 2)
        assert copied.files == newest.files
        build_version(models.root, "pets", seed=7)  # trained in between


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another process 1")
@pytest.mark.parametrize(
    ("which", "chosen"),
    [
        ("initContainers", False),
        pytest.param("initContainers", True, marks=pytest.mark.slow),
        ("containers", True),
    ],
)
def test_a_release_that_is_stopped_ends_at_once(tmp_path: Path, which: str, chosen: bool) -> None:
    """Not when the kubelet kills it. Its sh is process 1 of the container: to such a process a
    signal does nothing unless it has a trap for it."""
    pytest.importorskip("s3fs")
    # The kubelet sends what the image names.
    (named,) = re.findall(r"(?m)^STOPSIGNAL (\w+)$", (ROOT / "Dockerfile.train").read_text())
    stop = signal.Signals[named]
    (container,) = job("pawprint-release")["template"]["spec"][which]
    state = tmp_path / "releases/one"
    state.mkdir(parents=True)
    if chosen:
        (state / "version").write_text("2\n")
    with socket.socket() as silent:  # a store that never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        # What is ignored from the start, as SIGINT in a shell's background, no trap can change.
        heard = ("env", f"--default-signal={named}")
        as_first = ["unshare", "--pid", "--fork", "--kill-child", *heard, *container["command"]]
        process = start(
            container | {"command": as_first},
            tmp_path,
            **places(tmp_path) | {"FROM": "s3://bucket/models"},
            **s3_environment(silent.getsockname()[1]),
        )
        try:
            connection, _ = silent.accept()
            with connection:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                os.kill(int(children.read_text()), stop)
                assert process.wait(10) == 143
        finally:
            process.kill()
            process.communicate()


def test_a_gate_that_is_stopped_as_its_analysis_ends_is_tried_again(tmp_path: Path) -> None:
    state, programs = tmp_path / "releases/one", tmp_path / "programs"
    state.mkdir(parents=True)
    programs.mkdir()
    (state / "version").write_text("2\n")
    for name, line in (("analyze", "exit 0"), ("touch", "kill -TERM $PPID")):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    (container,) = job("pawprint-release")["template"]["spec"]["initContainers"]
    command = ["env", f"PATH={programs}:{PATH}", *container["command"]]
    status, said = ended(start(container | {"command": command}, tmp_path, **places(tmp_path)))
    assert (status, said) == (143, "") and status not in final_statuses("pawprint-release")


def test_a_broken_neighbour_of_whatever_letters_stops_no_release(tmp_path: Path) -> None:
    models = Repository(tmp_path / "models")
    for name in ("cats", "pets"):
        build_version(models.root, name)
    manifest = models.root / "cats/1/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"\1": 1}))
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    manifest.with_name("manifest.sha256").write_text(f"{digest}  manifest.json\n")
    state = tmp_path / "releases/one"
    state.mkdir(parents=True)
    (state / "passed").touch()
    assert gate(tmp_path) == (0, "")


def test_with_no_version_to_release_the_job_ends_at_once(tmp_path: Path) -> None:
    build_version(tmp_path / "models", "cats")
    status, said = gate(tmp_path)
    assert status in final_statuses("pawprint-release")
    assert said == "error: there is no version of pets\n"


@pytest.mark.slow
def test_what_passes_the_gate_was_analysed_once_and_what_fails_is_not_copied(
    tmp_path: Path,
) -> None:
    models = Repository(tmp_path / "models")
    write_cartoons(tmp_path / "photos", per_class=120)
    command = [sys.executable, "-m", "trainer.train", "--data", tmp_path / "photos", *SMALL]
    command += ["--epochs", "40", "--name", "pets", "--out", models.root]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    status, said = gate(tmp_path, *QUICK, "--fail-under", "clean=1", "--fail-under", "pgd@8/255=1")
    assert status in final_statuses("pawprint-release") and "failed: pgd@8/255=1" in said, said
    assert not (tmp_path / "releases/one/passed").exists()
    status, said = gate(tmp_path, *QUICK, "--fail-under", "worst@1/255=0")
    assert status == 0, said
    report = models.read_analysis("pets", 1, "report.json")
    assert gate(tmp_path) == (0, "")
    status, said = promotion(tmp_path)
    assert status == 0, said
    assert Repository(tmp_path / "bucket").read_analysis("pets", 1, "report.json") == report
