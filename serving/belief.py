"""Which answers may be believed: those as sure as the analysis of their version asks for.

It found that out of photos like those of the test, so it says nothing of one that is unfamiliar.
"""

from contextlib import suppress

from serving.answers import ModelDescription, Response, StreamedResult
from serving.async_client import AsyncClient
from serving.errors import InvalidRequest, NotFound

# A version that is new is on one of several servers before the others, which take turns.
_ASKED = 10


class Belief:
    """By the version that answers, of which there may be several: a canary, a promotion."""

    def __init__(self, client: AsyncClient, described: ModelDescription, accuracy: float) -> None:
        """described: the version that is expected to answer; accuracy: the share of answers that
        shall be right. Raises InvalidRequest where its analysis does not show it."""
        self._client, self._accuracy = client, accuracy
        threshold = described.threshold_for(accuracy)
        if threshold is None:
            raise InvalidRequest(_not_shown(described, accuracy))
        self._thresholds: dict[int, float | None] = {described.version: threshold}

    async def of(self, answer: StreamedResult) -> bool:
        """Whether the best label may be believed. That of a version whose analysis does not show
        it may not, nor of one that is gone."""
        response = answer.response
        if answer.result.error is not None or answer.result.unfamiliar or response is None:
            return False
        if response.version not in self._thresholds:
            self._thresholds[response.version] = await self._threshold(response)
        threshold = self._thresholds[response.version]
        return threshold is not None and answer.result.label.probability >= threshold

    async def _threshold(self, response: Response) -> float | None:
        for _ in range(_ASKED):
            with suppress(NotFound):
                described = await self._client.get_model(response.model, response.version)
                return described.threshold_for(self._accuracy)
        return None


def _not_shown(described: ModelDescription, accuracy: float) -> str:
    version = f"{described.model}/{described.version}"
    if described.trust is None:
        return (
            f"{version} has no analysis that says which answers may be believed: "
            f"analyze {version} --data DIR makes one"
        )
    shown = ", ".join(f"{t.accuracy:g}" for t in described.trust.thresholds)
    return (
        f"the {described.trust.photos} photos of {version}'s analysis show no probability from "
        f"which on {accuracy:g} of the answers are right"
        + (f"; they do for {shown}" if shown else "; give `analyze` more test photos")
    )
