"""Features on disk, so that the next head on the same frozen net takes seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from trainer.cached_file import CachedFile

Features = dict[str, npt.NDArray[np.float32]]  # sha256 of a photo's bytes -> [views, F]


class FeatureCache:
    """One npz for each `key`: all that features depend on but the photo."""

    def __init__(
        self, folder: Path | None, key: dict[str, object], say: Callable[[str], None]
    ) -> None:
        self._file = CachedFile(folder, "features.npz", key, say)
        self.path = self._file.path

    def load(self) -> Features:
        """What is kept; nothing if there is none, or if the file is damaged."""
        return self._file.read(_parse) or {}

    def save(self, features: Features) -> None:
        digests, vectors = np.array(list(features)), np.stack(list(features.values()))
        self._file.write(lambda file: np.savez(file, digests=digests, features=vectors))


def _parse(file: IO[bytes]) -> Features:
    with np.load(file, allow_pickle=False) as data:
        return dict(zip(data["digests"].tolist(), data["features"], strict=True))
