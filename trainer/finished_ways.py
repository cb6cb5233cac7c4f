"""The ways of a comparison that are published: one that was stopped goes on with the next."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.errors import BrokenVersion, NotFound
from serving.repository import Repository
from serving.whole_file import replaced, sweep

Row = dict[str, Any]  # of the table; "version": name/number


class FinishedWays:
    """Noted in one file, which is there while the comparison has not ended."""

    def __init__(self, path: Path, repository: Repository, settings: Mapping[str, Any]) -> None:
        """settings: way -> all that its version depends on, as JSON."""
        self._path, self._repository = path, repository
        self._settings = {way: _digest(each) for way, each in settings.items()}
        self._noted: dict[str, Any] = {}

    def load(self) -> dict[str, Row]:
        """way -> its row, of those that the same settings have published and that are there."""
        sweep(self._path)
        with contextlib.suppress(OSError, ValueError):
            noted = json.loads(self._path.read_bytes())
            self._noted = {way: each for way, each in noted.items() if self._holds(way, each)}
        return {way: each["row"] for way, each in self._noted.items()}

    def _holds(self, way: str, noted: Mapping[str, Any]) -> bool:
        try:
            manifest = self._manifest_digest(noted["row"])
        except (BrokenVersion, NotFound):  # it has been removed
            return False
        return (noted["settings"], noted["manifest"]) == (self._settings[way], manifest)

    def note(self, way: str, row: Row) -> None:
        self._noted[way] = {
            "settings": self._settings[way],
            "manifest": self._manifest_digest(row),
            "row": row,
        }
        with contextlib.suppress(OSError), replaced(self._path) as file:  # it costs no version
            file.write(json.dumps(self._noted).encode())

    def _manifest_digest(self, row: Row) -> str:
        name, number = row["version"].split("/")
        return self._repository.manifest_digest(name, int(number))

    def delete(self) -> None:
        """Once the comparison has ended: the same settings then begin another."""
        self._path.unlink(missing_ok=True)


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
