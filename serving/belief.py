"""Which answers may be believed: those as sure as the analysis of their version asks for.

It found that out of photos like those of the test, so it says nothing of one that is unfamiliar.
"""

from serving.answers import ModelDescription, Response, StreamedResult
from serving.async_client import AsyncClient
from serving.errors import InvalidRequest, NotFound
from serving.rollout import described


class Belief:
    """By the version that answers, of which there may be several: a canary, a promotion."""

    def __init__(self, client: AsyncClient, expected: ModelDescription, accuracy: float) -> None:
        """expected: the version that is to answer; accuracy: the share of answers that
        shall be right. Raises InvalidRequest where its analysis does not show it."""
        self._client, self._accuracy = client, accuracy
        threshold = expected.threshold_for(accuracy)
        if threshold is None:
            raise InvalidRequest(_not_shown(expected, accuracy))
        self._thresholds: dict[int, float | None] = {expected.version: threshold}

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
        try:
            answering = await described(self._client, response.model, response.version)
        except NotFound:
            return None
        return answering.threshold_for(self._accuracy)


def _not_shown(expected: ModelDescription, accuracy: float) -> str:
    version = f"{expected.model}/{expected.version}"
    if expected.trust is None:
        return (
            f"{version} has no analysis that says which answers may be believed: "
            f"analyze {version} --data DIR makes one"
        )
    shown = ", ".join(f"{t.accuracy:g}" for t in expected.trust.thresholds)
    return (
        f"the {expected.trust.photos} photos of {version}'s analysis show no probability from "
        f"which on {accuracy:g} of the answers are right"
        + (f"; they do for {shown}" if shown else "; give `analyze` more test photos")
    )
