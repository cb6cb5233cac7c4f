"""Environments of their own for packages whose pins clash with ours; kept in pytest's cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.alone import alone

_NETWORK_TROUBLE = (
    *("failed to fetch", "error sending request", "dns error", "connection refused"),  # of uv
    *("enotfound", "econnrefused", "eai_again", "etimedout", "enotcached", "e403"),  # of npm
)


def the_uv() -> str:
    """Skips where there is none."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if uv is None:
        pytest.skip("no uv beside this Python; `make test` installs it")
    return uv


def run_fetching(*command: str | Path, **options: Any) -> None:
    """A command that fetches packages. Skips where there is no network and nothing cached."""
    usual = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, **(usual | options))
    if done.returncode and any(words in done.stderr.lower() for words in _NETWORK_TROUBLE):
        pytest.skip(f"no network and nothing cached: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


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
    uv = the_uv()
    subprocess.run(
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True
    )
    run_fetching(uv, "pip", "install", "--quiet", "--python", folder / "bin/python", *packages)
    done.write_text(wanted)
    return folder


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
    quietly = ("--prefer-offline", "--no-progress", "--no-save")
    run_fetching(npm, "install", *quietly, *packages, cwd=folder)
    done.write_text("\n".join(packages))
    return folder
