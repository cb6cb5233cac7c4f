"""Environments of their own for packages whose pins clash with ours; kept in pytest's cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.alone import alone

NETWORK_TROUBLE = ("failed to fetch", "error sending request", "dns error", "connection refused")


def environment_with(cache: pytest.Cache, name: str, *packages: str) -> Path:
    """Its folder. Skips where there is no uv, or no network and nothing cached."""
    folder = Path(cache.mkdir(f"environment-{name}"))
    with alone(folder.with_suffix(".lock")):  # other processes of the tests want it, too
        return _environment(folder, packages)


def _environment(folder: Path, packages: tuple[str, ...]) -> Path:
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


NPM_TROUBLE = ("enotfound", "econnrefused", "eai_again", "etimedout", "enotcached", "e403")


def npm_folder_with(cache: pytest.Cache, name: str, *packages: str) -> Path:
    """The folder whose node_modules/.bin has the packages' programs. Skips where there is no npm,
    or no network and nothing cached."""
    folder = Path(cache.mkdir(f"npm-{name}"))
    with alone(folder.with_suffix(".lock")):
        return _npm_folder(folder, packages)


def _npm_folder(folder: Path, packages: tuple[str, ...]) -> Path:
    done = folder / "installed"
    if done.is_file() and done.read_text() == "\n".join(packages):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here")
    installing = subprocess.run(
        [npm, "install", "--prefer-offline", "--no-progress", "--no-save", *packages],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    if installing.returncode and any(x in installing.stderr.lower() for x in NPM_TROUBLE):
        pytest.skip(f"npm can't install: {installing.stderr.strip().splitlines()[0]}")
    assert installing.returncode == 0, installing.stderr
    done.write_text("\n".join(packages))
    return folder
