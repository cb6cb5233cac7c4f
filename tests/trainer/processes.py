"""Processes that learn together, started as a scheduler starts them, without torchrun."""

import os
import subprocess
import sys
from collections.abc import Sequence

from tests.conftest import ROOT
from tests.ports import free_port


def together(*arguments: Sequence[object]) -> list[subprocess.Popen[str]]:
    """Python with these arguments: one process for each, and the first is rank 0."""
    given = {
        **{"PYTHONPATH": str(ROOT), "WORLD_SIZE": str(len(arguments))},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, of_rank)],
            cwd=ROOT,
            env={**os.environ, **given, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, of_rank in enumerate(arguments)
    ]
