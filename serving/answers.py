"""What a caller of the client gets: plain values."""

from dataclasses import dataclass

from serving.modelspec import FLOAT32, Familiarity, RobustnessSummary, Trust


@dataclass(frozen=True, kw_only=True)
class Label:
    name: str
    index: int  # among the outputs of the model
    probability: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of one photo: labels, best first, or the reason why there are none.

    familiarity, unfamiliar: see Classification in classifier.proto.
    """

    labels: tuple[Label, ...]
    error: str | None
    familiarity: float | None = None  # None: the version can't tell
    unfamiliar: bool = False

    @property
    def label(self) -> Label:
        """The best one. Raises ValueError where the photo could not be classified."""
        if self.error is not None:
            raise ValueError(self.error)
        return self.labels[0]


def told_of(result: Result) -> tuple[float | None, bool | None]:
    """Its familiarity, and whether it is unfamiliar; None, in files and text, for what is not
    known."""
    known = result.familiarity is not None
    return result.familiarity, result.unfamiliar if known else None


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Milliseconds in the server; see Timings in classifier.proto."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float


@dataclass(frozen=True, kw_only=True)
class Response:
    results: tuple[Result, ...]  # in the order of the photos
    model: str
    version: int
    timings: Timings


@dataclass(frozen=True, kw_only=True)
class StreamedResult:
    index: int  # of the photo among those given
    result: Result
    response: Response | None  # None where the photo was refused
    latency_s: float  # from sending to answer, as the caller sees it


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    versions: tuple[int, ...]
    default_version: int
    aliases: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """See GetModelResponse in classifier.proto."""

    model: str
    version: int
    labels: tuple[str, ...]
    input_size: int
    backbone: str
    created: str
    precision: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    expected_calibration_error: float
    photos: int  # that these were measured on
    digests: dict[str, str]
    robustness: RobustnessSummary | None  # None until `analyze` has measured it
    trust: Trust | None
    familiarity: Familiarity | None  # None: the version can't tell; only of `precision`

    def threshold_for(self, accuracy: float) -> float | None:
        """The probability from which on at least `accuracy` of the answers are right; None where
        no analysis shows one. Of photos like those of the test, and with `trust.confidence`."""
        thresholds = () if self.trust is None else self.trust.thresholds
        enough = [t.probability for t in thresholds if t.accuracy >= accuracy - FLOAT32]
        return min(enough, default=None)
