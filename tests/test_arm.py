"""64-bit Arm has every package that pyproject.toml asks for, as constraints.txt pins it."""

import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.environments import run_fetching, the_uv

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# ONNX Runtime for GPUs, and so `serve` and `train`, want glibc 2.34 on Arm.
OLD = ("client", "serve-cpu", "otel", "s3", "gs", "az", "parquet")


@pytest.mark.parametrize("python", ["3.11", "3.14"])
@pytest.mark.parametrize("glibc, extras", [("2_28", OLD), ("2_34", tuple(EXTRAS))])
def test_every_package_has_a_wheel_for_arm(
    python: str, glibc: str, extras: tuple[str, ...], tmp_path: Path
) -> None:
    run_fetching(
        *(the_uv(), "pip", "compile", "--quiet", "pyproject.toml"),
        *(word for extra in extras for word in ("--extra", extra)),
        *("--constraints", "constraints.txt", "--only-binary", ":all:"),
        *("--python-platform", f"aarch64-manylinux_{glibc}", "--python-version", python),
        *("--output-file", tmp_path / "chosen.txt"),
        cwd=ROOT,
    )
