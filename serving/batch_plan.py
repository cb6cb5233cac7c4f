"""What the parts of a batch job are parts of, and which of them this machine makes.

<out>/_plan.json is made by whoever starts first, and never changed; all work by it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from serving.errors import InvalidRequest
from serving.modelspec import read_strictly
from serving.places import Place

PLAN = "_plan.json"
PART_PHOTOS = 1000


@dataclass(frozen=True, kw_only=True)
class Plan:
    photos: str  # where they are
    count: int
    digest: str  # sha256 over their names and stamps
    model: str
    asked: str  # for which version, number or alias; empty: the default
    version: int
    top_k: int
    part_photos: int
    # Whether the parts have its columns. Jobs of earlier releases go on without: many readers of a
    # data set take the columns of its first file for those of all.
    familiarity: bool

    def __post_init__(self) -> None:
        if self.part_photos < 1:
            raise ValueError(f"part_photos must be 1 or more, got {self.part_photos}")

    @property
    def parts(self) -> int:
        return -(-self.count // self.part_photos)

    def part_name(self, index: int) -> str:
        return f"part-{index:05d}-of-{self.parts:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Share:
    """The parts of this machine: those whose number is `rank` modulo `of`."""

    rank: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.of:
            raise InvalidRequest(f"a shard is RANK/OF with 0 <= RANK < OF, got {self}")

    def __str__(self) -> str:
        return f"{self.rank}/{self.of}"

    def indices(self, plan: Plan) -> range:
        """Of its parts."""
        return range(self.rank, plan.parts, self.of)


def agree(wanted: Plan, out: Place, *, labels: int) -> Plan:
    """The plan of the job in `out`, which this call begins or goes on with.

    Where no version is asked for, or what the job began with, its version stays, wherever a
    promotion has moved the alias meanwhile. labels: how many the wanted version has. Raises
    InvalidRequest if `out` holds something else.
    """
    files = out.files()
    try:
        # After the listing: whoever begins the job meanwhile writes the plan before any part.
        begun = _read(out)
    except FileNotFoundError:
        if files:
            raise InvalidRequest(
                "--out must be empty or hold a job of classify to go on with"
            ) from None
        check_top_k(wanted.top_k, labels)
        out.create(PLAN, (json.dumps(dataclasses.asdict(wanted), indent=2) + "\n").encode())
        begun = _read(out)  # that of another machine, if it was first
    if wanted.asked in ("", begun.asked):
        wanted = dataclasses.replace(wanted, version=begun.version)
    wanted = dataclasses.replace(wanted, asked=begun.asked, familiarity=begun.familiarity)
    for field in dataclasses.fields(Plan):
        was, now = getattr(begun, field.name), getattr(wanted, field.name)
        if was == now:
            continue
        if field.name in ("count", "digest"):
            differ = "their names, sizes or times differ"
            if field.name == "count":
                differ = f"then {was}, now {now}"
            raise InvalidRequest(
                f"the photos are no longer those that the job in --out was begun with ({differ}); "
                "choose another --out"
            )
        raise InvalidRequest(
            f"the job in --out was begun with another {field.name}: {was}, not {now}; "
            "choose another --out"
        )
    return begun


def check_top_k(top_k: int, labels: int) -> None:
    """Raises InvalidRequest if it is more than a version with so many labels can give."""
    if not 0 <= top_k <= labels:
        raise InvalidRequest(f"--top-k must be 0 to {labels}, the number of labels; got {top_k}")


def _read(out: Place) -> Plan:
    """Raises FileNotFoundError, InvalidRequest."""
    try:
        value = json.loads(out.read(PLAN))
        if isinstance(value, dict):
            value = {"familiarity": False} | value
            if value.keys() != Plan.__annotations__.keys():
                raise InvalidRequest(
                    "the job in --out was begun by another release of Pawprint, whose plan has "
                    "other keys; go on with that one, or choose another --out"
                )
        return read_strictly(Plan, value, PLAN)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{PLAN} in --out can't be read: {error}; choose another --out"
        ) from error


def digest_of(photos: Mapping[str, str]) -> str:
    """photos: see Place.photos."""
    digest = hashlib.sha256()
    for key, stamp in photos.items():
        digest.update(f"{key}\0{stamp}\0".encode())
    return digest.hexdigest()
