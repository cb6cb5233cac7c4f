"""The threads of NumPy's and SciPy's products of matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep them to one within the block.

    They spin while they wait for each other, and so for whatever else has the cores: beside
    PyTorch's threads a probe took 2.7 to 3.5 times as long on 2 cores, and small products 18 times
    as long on a machine with other work.
    """
    with threadpool_limits(limits=1, user_api="blas"):  # of all that are loaded by now
        yield
