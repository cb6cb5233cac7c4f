"""Features on disk, so that the next head on the same frozen net takes seconds."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.whole_file import replaced

Features = dict[str, npt.NDArray[np.float32]]  # sha256 of a photo's bytes -> [views, F]


class FeatureCache:
    """One npz for each `key`: all that features depend on but the photo. None: nothing is kept."""

    def __init__(self, folder: Path | None, key: dict[str, object]) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.path = None if folder is None else folder / f"features-{name}.npz"

    def load(self) -> Features:
        """What is kept; nothing if there is none, or if the file is damaged."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                return dict(zip(data["digests"].tolist(), data["features"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}

    def save(self, features: Features) -> None:
        """Replace the file in one step, so that a reader never sees half of it."""
        if self.path is None:
            return
        with replaced(self.path) as file:
            digests, vectors = np.array(list(features)), np.stack(list(features.values()))
            np.savez(file, digests=digests, features=vectors)
