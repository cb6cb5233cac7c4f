"""The generated code in the repository is what protos/generate.py makes of the .proto files."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from protos.inference import grpc_service_pb2
from protos.pawprint.v1 import admin_pb2, classifier_pb2
from tests.conftest import ROOT
from tests.environments import environment_with


def generated(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in (root / "protos").rglob("*_pb2*.py*")
        if path.suffix in (".py", ".pyi")
    }


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="what it is made with has no wheel for it")
def test_generated_code_is_fresh(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    (tool,) = re.findall("^grpcio-tools.*$", (ROOT / "protos/requirements.txt").read_text(), re.M)
    python = environment_with(pytestconfig.cache, "protos", tool) / "bin/python"
    code = "import sys, pathlib, protos.generate as g; g.generate(pathlib.Path(sys.argv[1]))"
    subprocess.run([python, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    fresh, here = generated(tmp_path), generated(ROOT)
    assert fresh.keys() == here.keys() and len(here) >= 3
    stale = [file for file in here if fresh[file] != here[file]]
    assert not stale, f"stale: {stale}; run `make protos`"


def test_every_file_says_its_package_in_go() -> None:
    """Without it protoc-gen-go makes nothing, and with one that has neither "." nor "/"."""
    for file in (classifier_pb2, admin_pb2, grpc_service_pb2):
        path, _, name = file.DESCRIPTOR.GetOptions().go_package.partition(";")
        assert "/" in path and name.isidentifier()


def test_go_code_is_made_of_every_file(tmp_path: Path) -> None:
    if shutil.which("protoc-gen-go") is None:
        pytest.skip("no protoc-gen-go here (Debian's package protoc-gen-go)")
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"),
            *(f"--go_out={tmp_path}", *map(str, protos)),
        ],
        check=True,
        timeout=60,
    )
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.go"))
    assert made == [
        "pawprint/inference/grpc_service.pb.go",
        "pawprint/v1/admin.pb.go",
        "pawprint/v1/classifier.pb.go",
    ]


def test_the_oldest_packages_that_may_be_installed_run_the_generated_code() -> None:
    """It refuses any that are older than those it was made with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = dict(
        requirement.split(">=") for requirement in project["optional-dependencies"]["client"]
    )
    for file, text in generated(ROOT).items():
        if file.endswith("_pb2.py"):
            (made_with,) = re.findall(rb"^# Protobuf Python Version: (\S+)$", text, re.M)
            assert made_with.decode() == oldest["protobuf"], file
        elif file.endswith("_pb2_grpc.py"):
            (made_with,) = re.findall(rb"^GRPC_GENERATED_VERSION = '(\S+)'$", text, re.M)
            assert made_with.decode() == oldest["grpcio"], file
