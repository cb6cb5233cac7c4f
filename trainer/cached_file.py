"""Files of `--cache`: what the next run need not compute again."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

from serving.errors import first_line
from serving.whole_file import remove_old, replaced, sweep

T = TypeVar("T")

_DISUSED_S = 90 * 86400.0  # after it was last read or written: that of old weights, or of old code


class CachedFile:
    """One file for each `key`: all that its content depends on. folder None: nothing is kept.

    `say` is told where it can't be read or written: no run ends for it.
    """

    def __init__(
        self, folder: Path | None, kind: str, key: dict[str, object], say: Callable[[str], None]
    ) -> None:
        """kind: "features.npz" is kept as "features-<digest of the key>.npz"."""
        self._say = say
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        stem, _, suffix = kind.partition(".")
        self.path = None if folder is None else folder / f"{stem}-{digest}.{suffix}"
        self._alike = f"{stem}-{'[0-9a-f]' * len(digest)}.{suffix}"

    def read(self, parse: Callable[[IO[bytes]], T]) -> T | None:
        """None if it is not there, or damaged."""
        if self.path is None:
            return None
        try:
            with self.path.open("rb") as file:
                with suppress(OSError):  # a folder that is not to be written to, or another user's
                    os.utime(file.fileno())
                return parse(file)
        except FileNotFoundError:
            return None
        except Exception as error:  # numpy and zipfile raise almost anything on other bytes
            self._say(
                f"Warning: {self.path} can't be read ({_reason(error)}); what it kept is made again"
            )
            return None

    def write(self, write: Callable[[IO[bytes]], object]) -> None:
        """Replace the file in one step, so that a reader never sees half of it; those of its kind
        that nobody has used for long make room."""
        if self.path is None:
            return
        remove_old(self.path.parent.glob(self._alike), _DISUSED_S)
        try:
            sweep(self.path)
            with replaced(self.path) as file:
                write(file)
        except OSError as error:
            self._say(
                f"Warning: {self.path} can't be written ({_reason(error)}); the next run makes "
                "again what it was to keep"
            )


NOTHING_KEPT = CachedFile(None, "nothing.none", {}, lambda _: None)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or first_line(error)
