"""A server from an environment with the `serve` extra alone, really installed: no torch there."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.environments import run_fetching, the_uv
from tests.photos import jpeg
from tests.tiny import build_version


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """bin/ of a fresh environment into which the wheel of this checkout is installed."""
    folder = tmp_path_factory.mktemp("serving-environment")
    source = folder / "source"
    source.mkdir()
    for name in ("serving", "trainer", "protos"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    uv, environment = the_uv(), folder / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    run_fetching(
        *(uv, "pip", "install", "--quiet", "--python", environment / "bin/python"),
        *("--constraints", source / "constraints.txt", f"{source}[serve]"),
        timeout=500,
    )
    yield environment / "bin"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def only_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PYTHONPATH of the caller's would lead back into the checkout."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


def run(command: list[object], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Outside the checkout, so that only what is installed can be imported."""
    return subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_only_the_serving_packages_are_there(environment: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, serving.server, serving.classify, serving.models;"
        "print([n for n in ('torch', 'torchvision', 'onnx', 'scipy', 'grpc_tools') "
        "if u.find_spec(n)]); print(serving.server.__file__)"
    )
    done = run([environment / "python", "-W", "error", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    absent, file = done.stdout.splitlines()
    assert absent == "[]" and file.startswith(str(environment.parent))


def test_it_serves_and_classifies(environment: Path, tmp_path: Path) -> None:
    models, port_file, photo = tmp_path / "models", tmp_path / "port", tmp_path / "cat.jpg"
    build_version(models, "pets")
    photo.write_bytes(jpeg())
    verified = run([environment / "models", "verify", "--models", models], tmp_path)
    assert (verified.returncode, verified.stdout) == (0, "pets/1: whole and unaltered\n")
    server = subprocess.Popen(
        [environment / "serve", "--models", models, "--port", "0", "--port-file", port_file],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = f"127.0.0.1:{port_file.read_text().strip()}"
        assert line == f"serving on {address}: pets/1 (fp32 on cpu)\n"
        address = line.split()[2].rstrip(":")
        done = run([environment / "classify", photo, "--address", address, "--json"], tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["labels"][0]["name"] in ("cat", "dog")
    finally:
        server.terminate()
        _, err = server.communicate(timeout=60)
    assert server.returncode == 0, err


def test_a_command_that_needs_torch_says_so_in_one_line(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "models" / "pets" / "1").mkdir(parents=True)  # which `analyze` looks for first
    for command in (["train", "--data", "photos"], ["analyze", "pets", "--data", "photos"]):
        done = run([environment / command[0], *command[1:]], tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: this needs the package torch")
        assert line.endswith(": pip install '.[train]'")
