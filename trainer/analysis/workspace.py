"""Finished pieces of an analysis on disk, so that one that was stopped goes on where it was.

A piece is a set of arrays with a name. It is written beside and renamed, so it is there whole or
not at all. Pieces are kept by a key made of all that they depend on: another model, other photos,
settings or code never meet them. Processes that share the folder share the pieces, and one holds a
lock on the piece that it is at, which ends with it.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.whole_file import remove_old, replaced
from trainer.alone import alone

Piece = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Task:
    """How to compute a piece that may not be there yet."""

    name: str
    run: Callable[[], Piece]


_KEY = "key.json"
_FORGOTTEN_AFTER_S = 7 * 24 * 3600.0


class Workspace:
    def __init__(self, parent: Path, key: dict[str, Any]) -> None:
        """`key`: JSON values; all that the pieces depend on."""
        text = json.dumps(key, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = parent / f".analysis-{digest}"
        others = (left for left in parent.glob(".analysis-*") if left != self.folder)
        remove_old(others, _FORGOTTEN_AFTER_S)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(self.folder / _KEY) as file:
            file.write(text.encode())

    def begun_by_others(self, made_by: Sequence[str]) -> bool:
        """Whether there is one with finished pieces whose key differs in `made_by` alone."""
        own = json.loads((self.folder / _KEY).read_text())
        for other in self.folder.parent.glob(f".analysis-*/{_KEY}"):
            with suppress(OSError, ValueError):  # gone since it was found, or damaged
                key = json.loads(other.read_text())
                alike = key | {name: own[name] for name in made_by} == own
                if alike and key != own and any(other.parent.glob("*.npz")):
                    return True
        return False

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '~')}.npz"

    def at(self, name: str) -> AbstractContextManager[None]:
        """While this process computes the piece. Raises BlockingIOError if another does."""
        return alone(self._path(name).with_suffix(".lock"), wait=False)

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def load(self, name: str) -> Piece:
        with np.load(self._path(name), allow_pickle=False) as archive:
            return dict(archive)

    def seconds(self, name: str) -> float:
        """What computing the piece took."""
        with np.load(self._path(name), allow_pickle=False) as archive:
            return float(archive["seconds"])

    def save(self, name: str, piece: Piece) -> None:
        with replaced(self._path(name)) as file:
            np.savez(file, allow_pickle=False, **piece)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def run_tasks(
    tasks: Sequence[Task],
    workspace: Workspace,
    *,
    rank: int,
    processes: int,
    done: Callable[[Task], None],
) -> None:
    """Compute this process's share of what is not finished yet, and no other process is at; `done`
    hears of each such piece."""
    for task in tasks[rank::processes]:
        with ExitStack() as held:
            try:
                held.enter_context(workspace.at(task.name))
            except BlockingIOError:
                continue
            if workspace.has(task.name):
                continue
            start = time.monotonic()
            piece = task.run()
            workspace.save(task.name, piece | {"seconds": np.array(time.monotonic() - start)})
            done(task)
