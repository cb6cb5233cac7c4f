"""The verdict of a running server on pictures, as any caller would get it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.client import Client
from serving.errors import InvalidRequest, NotFound, PawprintError, Unauthenticated, Unavailable

_TIMEOUT_S = 60.0


class ServerFailed(Unavailable):
    """The server can't be reached, or refuses."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Which version of which model it is asked for. access: `tls` and `token` of its Client."""

    address: str
    name: str
    version: int
    access: Mapping[str, Any] = field(default_factory=dict)

    def verdicts(self, pngs: Sequence[bytes]) -> list[tuple[str, float]]:
        """(label, probability) for each picture. Raises ServerFailed, and what is the user's
        mistake: InvalidRequest, NotFound, Unauthenticated."""
        answers = []
        try:
            with Client(self.address, timeout_s=_TIMEOUT_S, **self.access) as client:
                for png in pngs:
                    response = client.classify([png], model=self.name, version=str(self.version))
                    best = response.results[0].label
                    answers.append((best.name, best.probability))
        except (InvalidRequest, NotFound, Unauthenticated):
            raise
        except PawprintError as error:
            raise ServerFailed(
                f"{self.address} does not answer for {self.name}/{self.version}: {error}"
            ) from error
        return answers
