"""A real file system with little room."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Of at most so many bytes, in whole pages, in a folder made for it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size // 4096 * 4}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk here: mounting one is not allowed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
