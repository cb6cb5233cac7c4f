"""The same weights from the same seed, on a GPU too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.errors import FailedCheck

_LACKING = " does not have a deterministic implementation"  # torch's words, behind the operator


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it torch uses only operators that give the same bits each time, where `wanted`.

    Raises FailedCheck where one has no such form, as the pooling of vgg and alexnet on a GPU.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        operator, lacking, _ = str(error).partition(_LACKING)
        if not lacking:
            raise
        raise FailedCheck(
            f"{operator} can't be computed to the same bits each time; take another --backbone, or "
            "leave out --deterministic"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
