"""What a version of a model is, and its manifest.json, read and written without leniency.

Every field is required and no other is allowed: a missing one is an error, never a default.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from serving.errors import BrokenVersion, listed

SCHEMA_VERSION = 1
# What the graph of each file takes, uint8 [N, S, S, 3], and gives, float32 [N, K] each.
INPUT, OUTPUTS = "image", ("probabilities", "logits")
# What it gives too where FAMILIARITY_FILE is one of the version's files: float32 [N, 1].
FAMILIARITY, FAMILIARITY_FILE = "familiarity", "familiarity.json"
# By precision, what ONNX Runtime is not to do with a graph: on x86 this ends the process where a
# transposed fp16 tensor is multiplied, as in torchvision's ViTs (microsoft/onnxruntime#28392).
SKIPPED_OPTIMIZERS = {"fp16": ("NchwcTransformer",)}
FLOAT32 = 1e-6  # what a number may lose in 32 bits, of 1
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    sha256: str  # hex
    size: int  # bytes

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):  # names a file in a cache
            raise ValueError(f"sha256 must be 64 lower-case hex digits, got {self.sha256[:80]!r}")
        if self.size < 0:
            raise ValueError(f"size must be 0 or more, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Upright RGB, shorter side to `size`, centre crop of `size` x `size`, uint8."""

    size: int  # pixels
    interpolation: str

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise ValueError(f"size must be 16 to 4096 pixels, got {self.size}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, "
                f"got {self.interpolation!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """(pixel / 255 - mean) / std by channel; in the graph, kept here to rebuild it in PyTorch."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    digest: str  # sha256 over split, label, name and content of every photo used
    counts: dict[str, dict[str, int]]  # split -> label -> photos


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Measured on the test photos through the ONNX file and serving's preprocessing."""

    photos: int
    correct: int
    accuracy: float
    accuracy_low: float  # 95 % Wilson interval
    accuracy_high: float
    nll: float  # mean negative log-likelihood, nats
    ece: float  # expected calibration error, 15 equal-width bins
    per_class: dict[str, tuple[int, int]]  # label -> (correct, photos)

    def __post_init__(self) -> None:
        _check_photos(self.photos)

    @property
    def mean_recall(self) -> float:
        """Over the classes that have test photos: each counts alike."""
        shares = [right / photos for right, photos in self.per_class.values() if photos]
        return sum(shares) / len(shares)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """ONNX Runtime against PyTorch on the same photos."""

    photos: int
    batch_sizes: tuple[int, ...]
    logit_scale: float  # largest absolute logit
    max_logit_error: float  # largest absolute difference, in logits
    top1_agreement: float  # share of photos with the same first label


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One precision of the model: the same inputs and outputs in another file."""

    file: str
    metrics: Metrics
    parity: Parity
    latency_ms: float  # one photo's inference on the CPU of the machine that trained


@dataclass(frozen=True, kw_only=True)
class Manifest:
    schema_version: int
    name: str
    version: int
    created: str  # ISO 8601, UTC
    backbone: str
    labels: tuple[str, ...]  # in the order of the outputs
    preprocessing: Preprocessing
    normalisation: Normalisation
    temperature: float  # the graph divides its logits by it
    opset: int
    dataset: Dataset
    configuration: dict[str, Any]  # the training run's, as JSON
    training_seconds: float
    variants: dict[str, Variant]  # precision -> variant; "fp32" is always there
    software: dict[str, str]  # package -> version
    files: dict[str, FileEntry]  # relative POSIX path -> digest and size

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}; this Pawprint reads {SCHEMA_VERSION}"
            )
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be two or more and distinct, got {list(self.labels)}")
        if "fp32" not in self.variants:
            raise ValueError("variants must hold fp32")
        for variant in self.variants.values():
            if variant.file not in self.files:
                raise ValueError(f"the file of a variant is not listed in files: {variant.file}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Raises BrokenVersion: of a later schema, or naming the first field that is missing,
        unknown or malformed."""
        with _malformed("manifest.json"):
            value = json.loads(text)
            _check_schema(value)  # first: a later one has other fields
            return read_strictly(cls, value, "manifest")


@dataclass(frozen=True, kw_only=True)
class Familiarity:
    """familiarity.json: what the output of that name means.

    It is the share of photos which the version has not learnt from that are no more like those it
    has learnt from than this one is (a conformal p-value; Bates et al. 2023, arXiv:2104.08279): 1
    for the most ordinary photo, 1 / (photos + 1) for one that is stranger than all of them.
    """

    photos: int  # that it compares with
    threshold: float  # at this familiarity or below a photo is unfamiliar
    unfamiliar: dict[str, float]  # precision -> share of the test photos that are

    def __post_init__(self) -> None:
        _check_photos(self.photos)
        if not self.photos:
            raise ValueError("photos must be 1 or more, got 0")
        if not 0 < self.threshold < 1:  # NaN fails too
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold}")
        for precision, share in self.unfamiliar.items():
            if not 0 <= share <= 1:
                raise ValueError(f"unfamiliar.{precision} must be from 0 to 1, got {share}")

    def tells(self, familiarity: float) -> bool:
        """Whether a photo of this familiarity, as a file gives it in 32 bits, is unfamiliar."""
        return familiarity <= self.threshold * (1 + FLOAT32)

    def share(self, familiarities: Sequence[float]) -> float:
        """Of these photos, one at least, those that are unfamiliar."""
        return sum(map(self.tells, familiarities)) / len(familiarities)


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy:
    norm: str  # "linf" or "l2"
    epsilon: float  # pixel units of [0, 1]
    accuracy: float  # share of photos still right under the worst attack


@dataclass(frozen=True, kw_only=True)
class RobustnessSummary:
    """analysis/summary.json: the headline figures of a robustness report."""

    photos: int
    clean_accuracy: float
    robust_accuracy: tuple[RobustAccuracy, ...]
    corruption_accuracy: float
    created: str  # ISO 8601, UTC

    def __post_init__(self) -> None:
        _check_photos(self.photos)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Answers of at least this probability may be believed."""

    precision: str
    accuracy: float  # at least this share of them is right
    probability: float
    answered: float  # share of the test photos that have such an answer


@dataclass(frozen=True, kw_only=True)
class Trust:
    """analysis/trust.json: from which probability on an answer may be believed."""

    photos: int
    confidence: float  # that a threshold holds, over the draw of the photos
    thresholds: tuple[Threshold, ...]  # those that the photos show

    def __post_init__(self) -> None:
        _check_photos(self.photos)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an analysis found out, as far as a server tells it."""

    robustness: RobustnessSummary
    trust: Trust | None  # None: analysed by a Pawprint that did not write it


def _check_photos(count: int) -> None:
    if not 0 <= count < 2**31:  # what a message holds
        raise ValueError(f"photos must be from 0 to {2**31 - 1}, got {count}")


def read_json(kind: type[T], text: str | bytes, file: str) -> T:
    """As read_strictly, of what `file` holds. Raises BrokenVersion."""
    with _malformed(file):
        return read_strictly(kind, json.loads(text), PurePosixPath(file).stem)


@contextmanager
def _malformed(file: str) -> Iterator[None]:
    """Raises BrokenVersion where what it surrounds can't read `file`."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise BrokenVersion(f"{file} is malformed: {error}") from error


def _check_schema(value: Any) -> None:
    """Of a manifest. Raises BrokenVersion where a later Pawprint has published it."""
    schema = value.get("schema_version") if isinstance(value, dict) else None
    if type(schema) is int and schema > SCHEMA_VERSION:
        raise BrokenVersion(
            f"manifest.json has schema_version {schema}, and this Pawprint reads {SCHEMA_VERSION}: "
            "a newer one has published it; upgrade this one"
        )


def outputs_of(familiar: bool) -> tuple[str, ...]:
    """The names of what the graph of each file gives, in order; familiar: that, too."""
    return (*OUTPUTS, FAMILIARITY) if familiar else OUTPUTS


def widths_of(manifest: Manifest) -> dict[str, int]:
    """The same names, each with how many numbers it has for a photo."""
    names = outputs_of(FAMILIARITY_FILE in manifest.files)
    return {name: 1 if name == FAMILIARITY else len(manifest.labels) for name in names}


def other_labels(before: Manifest, after: Manifest) -> str:
    """What callers lose and get, in a sentence; "" where both know the same classes."""
    old, new = set(before.labels), set(after.labels)
    if old == new:
        return ""
    gone, come = listed(sorted(old - new)), listed(sorted(new - old))
    return f"Its labels are not those of version {before.version}: gone: {gone}; new: {come}"


def read_strictly(kind: type[T], value: Any, where: str) -> T:
    """Turn parsed JSON into `kind`: a dataclass, dict[str, X], tuple[X, ...] or a JSON type.

    Raises ValueError, naming the place, where a field is missing, unknown or of another type.
    """
    read: Any = _read(kind, value, where)
    return read  # type: ignore[no-any-return]


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        _expect(isinstance(value, Mapping), where, "an object", value)
        hints = get_type_hints(kind)
        missing, unknown = sorted(hints.keys() - value.keys()), sorted(value.keys() - hints.keys())
        if missing or unknown:
            raise ValueError(f"{where}: missing {missing}, unknown {unknown}")
        fields = {name: _read(hint, value[name], f"{where}.{name}") for name, hint in hints.items()}
        try:
            return kind(**fields)  # type: ignore[operator]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if origin is dict:
        _expect(isinstance(value, Mapping), where, "an object", value)
        for key in value:
            _check_text(key, where)
        return {k: _read(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple:
        _expect(isinstance(value, list), where, "a list", value)
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        _expect(len(value) == len(kinds), where, f"{len(kinds)} items", value)
        return tuple(
            _read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    if type(value) is int:
        _expect(-(2**63) <= value < 2**63, where, "a number of at most 64 bits", value)
    if kind is float and type(value) is int:
        return float(value)
    _expect(type(value) is kind, where, kind.__name__, value)
    if kind is str:
        _check_text(value, where)
    return value


def _check_text(value: str, where: str) -> None:
    """JSON can write half of a character, which no message can carry."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: expected text, got {value[:80]!r}") from error


def _expect(condition: bool, where: str, expected: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{where}: expected {expected}, got {str(got)[:80]!r}")
