"""Photos from disk to pixels, in threads (Pillow frees the interpreter lock while it decodes)."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.modelspec import Preprocessing
from serving.preprocess import decode, preprocess
from trainer.errors import InvalidData
from trainer.shard_places import Member

Pixels = npt.NDArray[np.uint8]

MEMORY_BYTES = 2 << 30  # decoded pictures kept; beyond it they are decoded anew each time
_MARGIN = 1.15  # shorter side of what augmentation crops from, over the side of the crop


@dataclass(frozen=True, kw_only=True)
class Photo:
    path: Path | Member
    file: str  # relative to the folder of photos, POSIX
    label: int
    digest: str  # sha256 of its bytes, hex


class Pictures:
    """Decoded photos, kept in memory while they fit: uint8 [h, w, 3] for each."""

    def __init__(self, decoder: Callable[[bytes], Pixels], *, workers: int) -> None:
        self._decoder = decoder
        self._workers = workers
        self._memory = MEMORY_BYTES
        self._kept: dict[str, Pixels] = {}

    def decode(self, data: bytes, digest: str) -> Pixels:
        """Decode a photo that has been read, and keep it. Raises InvalidImage."""
        pixels = self._decoder(data)
        if pixels.nbytes <= self._memory:
            self._memory -= pixels.nbytes
            self._kept[digest] = pixels
        return pixels

    def get(self, photos: Sequence[Photo]) -> list[Pixels]:
        """In the order of `photos`. Raises InvalidData if a file has changed since."""
        missing = {p.digest: p for p in photos if p.digest not in self._kept}
        if not missing:
            return [self._kept[photo.digest] for photo in photos]
        with ThreadPoolExecutor(self._workers) as pool:
            new = dict(zip(missing, pool.map(self._read, missing.values()), strict=True))
        return [new[p.digest] if p.digest in new else self._kept[p.digest] for p in photos]

    def _read(self, photo: Photo) -> Pixels:
        try:
            data = photo.path.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise InvalidData(f"{photo.file} can't be read any more: {reason}") from error
        if hashlib.sha256(data).hexdigest() != photo.digest:
            raise InvalidData(f"{photo.file} was changed during the training; start again")
        return self.decode(data, photo.digest)


def as_served(spec: Preprocessing, *, workers: int) -> Pictures:
    """uint8 [S, S, 3], to the bit what the server makes of the same bytes."""
    return Pictures(partial(preprocess, spec=spec), workers=workers)


def for_augmentation(size: int, *, workers: int) -> Pictures:
    """Whole photos with a little more than `size` px on the shorter side, for random crops."""
    return Pictures(partial(_thumbnail, side=round(size * _MARGIN)), workers=workers)


def _thumbnail(data: bytes, side: int) -> Pixels:
    image = decode(data, draft=side)
    scale = side / min(image.size)
    if scale < 1:
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)
