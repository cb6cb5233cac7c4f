"""Environments of their own for packages whose pins clash with ours; kept in pytest's cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NETWORK_TROUBLE = ("failed to fetch", "error sending request", "dns error", "connection refused")


def environment_with(cache: pytest.Cache, name: str, *packages: str) -> Path:
    """Its folder. Skips where there is no uv, or no network and nothing cached."""
    folder = Path(cache.mkdir(f"environment-{name}"))
    done = folder / "installed"
    wanted = "\n".join((sys.version, *packages))
    if done.is_file() and done.read_text() == wanted:
        return folder
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if uv is None:
        pytest.skip("no uv beside this Python; `make test` installs it")
    subprocess.run(
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True
    )
    installing = subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", folder / "bin/python", *packages],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if installing.returncode and any(x in installing.stderr.lower() for x in NETWORK_TROUBLE):
        pytest.skip(f"no network and nothing cached: {installing.stderr.strip().splitlines()[0]}")
    assert installing.returncode == 0, installing.stderr
    done.write_text(wanted)
    return folder
