"""Versions whose counts are kept: those that are served, and those that were until the last change
of their model. A scraper comes every few seconds, and would never see the end of the others.
"""

from collections.abc import Collection

Version = tuple[str, int]  # model and number


class Lately:
    def __init__(self) -> None:
        self._served: dict[str, set[int]] = {}
        self._before: dict[str, set[int]] = {}

    def kept(self, served: Collection[Version]) -> set[Version]:
        """To be told of each change; served: what is from now on."""
        now: dict[str, set[int]] = {model: set() for model in self._served}
        for model, version in served:
            now.setdefault(model, set()).add(version)
        for model, versions in now.items():
            earlier = self._served.get(model, set())
            if versions != earlier:
                self._before[model] = earlier
        self._served = now
        return {
            (model, version)
            for model, versions in now.items()
            for version in versions | self._before[model]
        }
