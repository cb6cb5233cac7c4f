"""What stands against reading models: said when it comes, when it changes and when it is over."""

import logging
import time
from collections.abc import Iterable

from serving.errors import PawprintError

log = logging.getLogger(__name__)

ALL = ""  # in the place of a model's name: the repository as a whole


class Troubles:
    """last_look: when the repository was last read as a whole, seconds of Unix time; 0: never."""

    def __init__(self) -> None:
        self.last_look = 0.0
        self._texts: dict[str, str] = {}

    @property
    def texts(self) -> list[str]:
        return [*self._texts.values()]

    def met(self, name: str, error: Exception) -> None:
        """name: the model that can't be read, or ALL. What nobody expects has its traceback."""
        expected = isinstance(error, (PawprintError, OSError))
        text = ": ".join(filter(None, (name, str(error) if expected else repr(error))))
        if text != self._texts.get(name):
            log.error(
                "what is loaded goes on being served, but: %s",
                text,
                exc_info=None if expected else error,
            )
        self._texts[name] = text

    def none_with_the_whole(self) -> None:
        """What the repository holds was read, whatever becomes of each model."""
        self.last_look = time.time()
        self.over(ALL)

    def over(self, name: str) -> None:
        if self._texts.pop(name, ""):
            log.info("%s can be read again", name or "the repository")

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget all other models."""
        self._texts = {name: self._texts[name] for name in names if name in self._texts}
