"""A command whose stdout nobody reads, as in `... | head` once head has what it wants."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def unread(*arguments: object, **environment: str) -> tuple[int, str]:
    """The status of Python with these arguments, and what it says on stderr."""
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
