"""No more threads than cores that may be used: a container's quota of them is seen by none else."""

import os
from collections.abc import Mapping

from serving.cores import usable_cores
from trainer.ranks import processes_here


def keep_to_cores() -> None:
    """PyTorch starts a thread for each core of the machine. Where a quota leaves fewer, they use it
    up while they wait for each other, and all are halted until the next period."""
    import torch  # takes seconds: who only asks for the number of cores does without

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def own_cores(environment: Mapping[str, str]) -> int:
    """This process's share of the cores that may be used, with others that torchrun started here;
    at least 1. Raises InvalidRequest."""
    return max(1, usable_cores() // processes_here(environment))


def onnx_threads() -> int:
    """For a session of ONNX Runtime that has the machine to itself; 0: as many as it sees fit."""
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or 1) else 0
