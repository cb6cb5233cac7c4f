"""Features on disk, so that the next head on the same frozen net takes seconds."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.whole_file import replaced, sweep

Features = dict[str, npt.NDArray[np.float32]]  # sha256 of a photo's bytes -> [views, F]


class FeatureCache:
    """One npz for each `key`: all that features depend on but the photo. None: nothing is kept.

    `say` is told where a file can't be read or written: no run ends for it.
    """

    def __init__(
        self, folder: Path | None, key: dict[str, object], say: Callable[[str], None]
    ) -> None:
        self._say = say
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.path = None if folder is None else folder / f"features-{name}.npz"

    def load(self) -> Features:
        """What is kept; nothing if there is none, or if the file is damaged."""
        if self.path is None:
            return {}
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                return dict(zip(data["digests"].tolist(), data["features"], strict=True))
        except FileNotFoundError:
            return {}
        except Exception as error:  # numpy and zipfile raise almost anything on other bytes
            self._say(
                f"Warning: the features in {self.path} can't be read ({_reason(error)}); they are "
                "computed again"
            )
            return {}

    def save(self, features: Features) -> None:
        """Replace the file in one step, so that a reader never sees half of it."""
        if self.path is None:
            return
        try:
            sweep(self.path)
            with replaced(self.path) as file:
                digests, vectors = np.array(list(features)), np.stack(list(features.values()))
                np.savez(file, digests=digests, features=vectors)
        except OSError as error:
            self._say(
                f"Warning: features can't be kept in {self.path.parent} ({_reason(error)}); the "
                "next run computes them again"
            )


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error).strip().split("\n")[0] or type(error).__name__
