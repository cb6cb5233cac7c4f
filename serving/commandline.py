"""What our commands have in common: a user's mistake is one line on stderr, and status 2."""

import argparse
import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from serving.visible import visible

USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """argparse without the usage text before the error."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def one_of(choices: Sequence[str]) -> str:
    """As argparse shows choices; for a flag whose values are checked elsewhere."""
    return "{" + ",".join(choices) + "}"


def fail(message: str, status: int = USER_ERROR) -> NoReturn:
    print(f"error: {visible(message)}", file=sys.stderr)
    sys.exit(status)


def print_every_name() -> None:
    """From now on stdout takes all: names of files are bytes, and not always of its encoding, and
    go there as they are; other characters that it lacks go as JSON writes them, \\u00e4."""
    codecs.register_error("every-name", _as_bytes_or_escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="every-name")


def _as_bytes_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start]  # one at a time: neighbours may be of the other kind
    if "\udc80" <= wrong <= "\udcff":
        return wrong.encode("ascii", "surrogateescape"), error.start + 1
    return json.dumps(wrong)[1:-1], error.start + 1


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Whoever reads what is printed, as in `... | head`: the command then ends, without a word; and
    with one where what is printed goes to a full disk."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:  # that of another file
            raise
        _to_nowhere()
        fail(f"stdout takes no more ({error.strerror})", 1)


def _to_nowhere() -> None:
    """With what is left of stdout, which is written when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def aligned(rows: Sequence[Sequence[object]]) -> str:
    """Lines of text in columns, two spaces apart; the last column is as wide as it needs."""
    texts = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )
