"""Pages as a real browser shows them."""

import shutil
import subprocess
from pathlib import Path

import pytest


def browse(page: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """On stdout the page's elements, as they are once its scripts have run."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    return subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", f"--user-data-dir={folder / 'profile'}"),
            *("--virtual-time-budget=5000", *flags, "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
