"""What our commands have in common: a user's mistake is one line on stderr, and status 2."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """argparse without the usage text before the error."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def fail(message: str, status: int = USER_ERROR) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Whoever reads what is printed, as in `... | head`: the command then ends, without a word."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def aligned(rows: Sequence[Sequence[object]]) -> str:
    """Lines of text in columns, two spaces apart; the last column is as wide as it needs."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )
