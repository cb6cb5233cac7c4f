"""What is kept of shards on this machine: their indices, and copies of those in buckets.

<root>/<key>.json    an index
<root>/<key>.tar     a copy, whole

The key stands for place, size and the store's own stamp: a shard that is replaced has another.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.blob_cache import default_cache, limit_of
from serving.whole_file import remove_old, replaced
from trainer.alone import alone
from trainer.shard_places import BucketShard, Shard, shard_key

_LIMIT = "PAWPRINT_SHARD_CACHE_GB"
_DAY_S = 24 * 3600.0
_MONTH_S = 30 * _DAY_S
_FREE_SHARE = 0.1  # of the disk, that copies leave free where no limit is set


class ShardCache:
    """Safe for many processes at once. Where the disk can't be used, nothing is kept."""

    def __init__(self, root: Path, limit: int | None) -> None:
        """`limit`: of all copies together, bytes; None: a tenth of the disk stays free."""
        self._root = root
        self._limit = limit

    def index(self, shard: Shard) -> Any | None:
        """What was last given to `keep_index` for it."""
        try:
            path = self._root / f"{shard_key(shard)}.json"
            value = json.loads(path.read_bytes())
            os.utime(path)  # used now
            return value
        except (OSError, ValueError):
            return None

    def keep_index(self, shard: Shard, value: Any) -> None:
        path = self._root / f"{shard_key(shard)}.json"
        with suppress(OSError):
            with replaced(path) as file:
                file.write(json.dumps(value).encode())
            remove_old(self._root.glob("*.json"), _MONTH_S)

    def copy(self, shard: BucketShard) -> Path | None:
        """The whole shard as a file, downloaded if need be; None where there is no room for it.

        Raises Unavailable, InvalidData if it can't be had.
        """
        whole = self._root / f"{shard_key(shard)}.tar"
        part = whole.with_suffix(".part")
        try:
            with alone(whole.with_suffix(".lock")):
                if whole.is_file() and whole.stat().st_size == shard.size:
                    os.utime(whole)
                    return whole
                try:
                    if not self._reserve(part, shard.size):
                        return None
                    with part.open("r+b") as file:
                        file.writelines(shard.chunks())
                        ended = file.tell()
                    if ended != shard.size:
                        return None
                    os.replace(part, whole)
                    return whole
                finally:
                    part.unlink(missing_ok=True)
        except OSError:
            return None

    def _reserve(self, part: Path, size: int) -> bool:
        """Make `part` a file of so many bytes, if there is room. What is older than a day goes."""
        with alone(self._root / "room.lock"):
            part.unlink(missing_ok=True)
            held = self._held()
            used = sum(of for _, of, _ in held)
            while not self._fits(size, used):
                if not held or held[0][0] > time.time() - _DAY_S:
                    return False
                _, freed, path = held.pop(0)
                path.unlink(missing_ok=True)
                used -= freed
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            return True

    def _held(self) -> list[tuple[float, int, Path]]:
        """When it was last used, bytes and path of each copy, the oldest first."""
        held = {}
        # Parts first: one that becomes whole meanwhile is seen as either, or as both.
        for pattern in ("*.part", "*.tar"):
            for path in self._root.glob(pattern):
                with suppress(FileNotFoundError):  # it has just become whole
                    status = path.stat()
                    held[path.stem] = (status.st_mtime, status.st_size, path)
        return sorted(held.values())

    def _fits(self, size: int, used: int) -> bool:
        if self._limit is not None:
            return used + size <= self._limit
        disk = shutil.disk_usage(self._root)
        return disk.free - size >= _FREE_SHARE * disk.total


def shard_cache(environment: Mapping[str, str]) -> ShardCache:
    """Below PAWPRINT_CACHE, of PAWPRINT_SHARD_CACHE_GB. Raises InvalidRequest."""
    return ShardCache(default_cache(environment) / "shards", limit_of(environment, _LIMIT))
