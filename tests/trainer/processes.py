"""Processes that learn together, started as a scheduler starts them, without torchrun."""

import os
from collections.abc import Sequence

from tests.conftest import ROOT
from tests.ports import free_port
from tests.warm import Warm


def together(*arguments: Sequence[object]) -> list[Warm]:
    """Python with these arguments: one process for each, and the first is rank 0."""
    given = {
        **{"PYTHONPATH": str(ROOT), "WORLD_SIZE": str(len(arguments))},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    }
    return [
        Warm(*of_rank, env={**os.environ, **given, "RANK": str(rank)})
        for rank, of_rank in enumerate(arguments)
    ]
