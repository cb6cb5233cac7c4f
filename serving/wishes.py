"""What the operator asks for by calls, beside the settings: versions loaded, and unloaded."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import PawprintError
from serving.repository import Repository


class Wishes:
    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._pinned: set[tuple[str, int]] = set()
        self._barred: dict[tuple[str, int], str] = {}  # with the digest of what it was

    def pin(self, name: str, version: int) -> None:
        """It is served until it is barred."""
        self._pinned.add((name, version))
        self._barred.pop((name, version), None)

    def bar(self, name: str, version: int, digest: str) -> None:
        """It is not served until it is pinned. digest: of its manifest."""
        self._barred[name, version] = digest
        self._pinned.discard((name, version))

    @contextmanager
    def forgotten_if_it_fails(self) -> Iterator[None]:
        """A wish that has failed is not fulfilled later, unasked."""
        pinned, barred = set(self._pinned), dict(self._barred)
        try:
            yield
        except BaseException:
            self._pinned, self._barred = pinned, barred
            raise

    def pinned(self, name: str) -> set[int]:
        return {version for model, version in self._pinned if model == name}

    def barred(self, name: str) -> set[int]:
        return {version for model, version in self._barred if model == name}

    def barred_now(self, name: str) -> set[int]:
        """Without those whose number another one has taken; looks into the repository."""
        return {v for v in self.barred(name) if not self._is_another(name, v)}

    def _is_another(self, name: str, version: int) -> bool:
        try:
            if self._repository.manifest_digest(name, version) == self._barred[name, version]:
                return False
            self._repository.manifest(name, version)
        except (PawprintError, OSError):  # it is gone, half there or damaged
            return False
        return True
