"""config.pbtxt, read by Triton's own definition of it, against the model that lies beside it."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from serving.repository import Repository
from tests.conftest import ROOT
from tests.environments import environment_with
from tests.serving.test_tritonclient import TRITONCLIENT
from tests.tiny import build_version

# Triton reads the file with protobuf's text format as inference.ModelConfig, strictly.
READ = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
config = text_format.Parse(open(sys.argv[1]).read(), ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
"""
KINDS = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


@pytest.mark.parametrize("familiar", [False, True])
def test_triton_reads_what_the_model_is(
    tmp_path: Path, pytestconfig: pytest.Config, familiar: bool
) -> None:
    models = tmp_path
    build_version(models, "pets", familiar=familiar)
    folder = environment_with(pytestconfig.cache, "tritonclient", TRITONCLIENT)
    done = subprocess.run(
        [folder / "bin/python", "-c", READ, models / "pets/config.pbtxt"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)
    assert (config["name"], config["platform"]) == ("pets", "onnxruntime_onnx")
    assert config["max_batch_size"] == 16 and "dynamic_batching" in config
    path = models / "pets/1" / config["default_model_filename"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for key, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        described = {(t["name"], t["data_type"], tuple(map(int, t["dims"]))) for t in config[key]}
        assert described == {(t.name, KINDS[t.type], tuple(t.shape[1:])) for t in tensors}
        assert all(not isinstance(t.shape[0], int) for t in tensors)  # Triton's batch dimension
    outputs = {output["name"]: output for output in config["output"]}
    assert ("familiarity" in outputs) == familiar
    assert not familiar or "label_filename" not in outputs.pop("familiarity")
    for output in outputs.values():
        labels = (models / "pets" / output["label_filename"]).read_text().splitlines()
        assert labels == ["cat", "dog"]


def test_the_newest_version_is_described_and_versions_stay_whole(models: Path) -> None:
    before = (models / "pets/config.pbtxt").read_text()
    assert "dims: [ 32, 32, 3 ]" in before and "with version 1" in before
    build_version(models, "pets", labels=("a", "b", "c"), size=64)
    after = (models / "pets/config.pbtxt").read_text()
    assert "dims: [ 64, 64, 3 ]" in after and "dims: [ 3 ]" in after and "version 2" in after
    assert (models / "pets/labels.txt").read_text() == "a\nb\nc\n"
    repository = Repository(models)
    assert repository.names() == ["pets"] and repository.versions("pets") == [1, 2]
    assert repository.verify("pets", 1) == repository.verify("pets", 2) == []


def test_a_newer_version_that_is_broken_is_no_failure_of_the_one_published(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(models, "pets")  # as another does meanwhile
    (models / "pets/2/manifest.json").write_bytes(b"")
    Repository(models).describe_to_triton("pets", 1)
    assert "pets/1 is published, but config.pbtxt beside it can't be written" in caplog.text


def test_it_is_written_in_one_step(models: Path) -> None:
    """Killed before the rename, the next publisher leaves the old file whole."""
    before = (models / "pets/config.pbtxt").read_bytes()
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.tiny import build_version\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_version(Path(sys.argv[1]), 'pets', size=64)"
    )
    subprocess.run([sys.executable, "-c", code, str(models)], cwd=ROOT, timeout=60, check=False)
    assert (models / "pets/config.pbtxt").read_bytes() == before
    assert Repository(models).versions("pets") == [1, 2]  # the version itself was published
    build_version(models, "pets", size=64)
    assert "version 3" in (models / "pets/config.pbtxt").read_text()
