"""What a run says: a progress bar on a terminal, plain lines in a log, and JSON on demand."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from serving.visible import visible
from trainer.exit_status import FAILED

T = TypeVar("T")
Advance = Callable[[int, str], None]  # how many are done since the last call, and a note

_LOG_EVERY_S = 10.0


class Progress(Protocol):
    """Passes the items on, and may show how many of all have come."""

    def __call__(self, items: Iterable[T], title: str, total: int, /) -> Iterable[T]: ...


def unshown(items: Iterable[T], title: str, total: int, /) -> Iterable[T]:
    """A Progress that shows nothing."""
    return items


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Around what is said of work that is done: as in `... | head`, whoever reads stdout may have
    left, which undoes none of it. What can't be written otherwise ends the command."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # which rich makes of the former
        _to_nowhere()
    except OSError as error:
        _to_nowhere()
        print(
            f"error: what is done is done, but stdout takes no more of it ({error.strerror})",
            file=sys.stderr,
        )
        sys.exit(FAILED)


def _to_nowhere() -> None:
    """With what is left of stdout, which is written when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Writes to stdout, or to stderr where stdout is to hold JSON alone."""

    def __init__(self, *, to_stderr: bool, silent: bool = False) -> None:
        file = sys.stderr if to_stderr else sys.stdout
        self._name = "stderr" if to_stderr else "stdout"
        # What is printed holds names of files: nothing in them is markup.
        self._rich = RichConsole(
            file=file, highlight=False, markup=False, emoji=False, quiet=silent
        )

    def line(self, text: str = "") -> None:
        try:
            self._rich.print(visible(text), soft_wrap=True)
        except OSError as error:  # it has no name, and could be of any disk
            error.filename = self._name
            raise

    def table(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Two columns: a name and its value."""
        if not self._rich.is_terminal:
            self.line(title)
            for name, value in rows:
                self.line(f"  {name:<16} {value}")
            return
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in rows:
            table.add_row(name, visible(value))
        self._rich.print(table)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        """A bar with the time left; in a log a line every ten seconds."""
        if self._rich.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with RichProgress(*columns, console=self._rich) as progress:
                task = progress.add_task(title, total=total, note="")
                yield lambda done, note: progress.update(task, advance=done, note=note)
        else:
            yield self._log(title, total)

    def track(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        """Pass the items on, with a bar."""
        with self.bar(title, total) as advance:
            for item in items:
                yield item
                advance(1, "")

    def _log(self, title: str, total: int) -> Advance:
        started = said = time.monotonic()
        done = 0

        def advance(count: int, note: str) -> None:
            nonlocal done, said
            done += count
            now = time.monotonic()
            if now - said >= _LOG_EVERY_S or done == total:
                said = now
                left = (now - started) / max(done, 1) * (total - done)
                end = f"{left:.0f} s left" if done < total else f"{now - started:.1f} s"
                self.line(f"{title}: {done}/{total}, {end}{'  ' if note else ''}{note}")

        return advance
