"""Python in a process of its own, as a user would run one of our commands."""

import os
import subprocess
import sys
from typing import Any

from tests.conftest import ROOT

# A locale whose encoding is not UTF-8; Python would else take C for one that is.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run_python(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """With these arguments, in the root of the checkout, to its end."""
    usual = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    usual |= {"text": True, "timeout": 120}
    return subprocess.run([sys.executable, *map(str, arguments)], **(usual | options))


def unread(*arguments: object, **environment: str) -> tuple[int, str]:
    """Where nobody reads stdout, as in `... | head` once head has what it wants: its status, and
    what it says on stderr."""
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        return process.wait(120), said
