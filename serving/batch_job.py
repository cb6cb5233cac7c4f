"""Very many photos, from a folder or a bucket, to a Parquet data set: in parts, resumable.

<out>/_plan.json                     what the parts are parts of; another job is refused
<out>/part-00012-of-00100.parquet    written whole, in one step; one that is there is done

Parts depend on nothing but the plan, so any number of machines can share them: each takes those
whose number is its rank modulo the number of machines. Stopped anywhere, it goes on where it was.
"""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.async_client import AsyncClient
from serving.errors import InvalidRequest, Overloaded, PawprintError
from serving.modelspec import read_strictly
from serving.parquet import parquet_of, row_of
from serving.places import Place

PLAN = "_plan.json"
PART_PHOTOS = 1000
# How long a full server is waited for, seconds; it is asked again ever less often.
OVERLOAD_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    photos: str  # where they are
    count: int
    digest: str  # sha256 over their names
    model: str
    version: int
    top_k: int
    part_photos: int

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


def agree(wanted: Plan, out: Place, *, version_given: bool) -> Plan:
    """The plan of the job in `out`, which this call begins or goes on with.

    A version that was not asked for is the one that the job began with. Raises InvalidRequest if
    `out` holds something else.
    """
    files = out.files()
    if PLAN not in files:
        if files:
            raise InvalidRequest("--out must be empty or hold a job of classify to go on with")
        out.write(PLAN, (json.dumps(dataclasses.asdict(wanted), indent=2) + "\n").encode())
        return wanted
    try:
        begun = read_strictly(Plan, json.loads(out.read(PLAN)), PLAN)
    except ValueError as error:
        raise InvalidRequest(f"{PLAN} in --out can't be read: {error}") from error
    if not version_given:
        wanted = dataclasses.replace(wanted, version=begun.version)
    for field in dataclasses.fields(Plan):
        was, now = getattr(begun, field.name), getattr(wanted, field.name)
        if was != now:
            raise InvalidRequest(
                f"the job in --out was begun with another {field.name}: {was}, not {now}; "
                "choose another --out"
            )
    return begun


def digest_of(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


async def run_job(
    client: AsyncClient,
    plan: Plan,
    share: Share,
    keys: Sequence[str],
    source: Place,
    out: Place,
    in_flight: int,
    done: Callable[[int], None],
) -> int:
    """Make the parts of this share that are not there yet; returns how many photos in those failed.

    done: told the photos of each part as it is finished. Raises Unavailable, DeadlineExceeded,
    NotFound, ...: whatever is no fault of one photo ends the job, to be gone on with later.
    """
    there = await asyncio.to_thread(out.files)
    failed = 0
    for index in range(share.rank, plan.parts, share.of):
        part = keys[index * plan.part_photos : (index + 1) * plan.part_photos]
        if plan.part_name(index) not in there:
            slots = asyncio.Semaphore(in_flight)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_classify(client, plan, key, source, slots)) for key in part
                ]
            rows = [task.result() for task in tasks]
            failed += sum(row["error"] is not None for row in rows)
            await asyncio.to_thread(out.write, plan.part_name(index), parquet_of(rows))
        done(len(part))
    return failed


async def _classify(
    client: AsyncClient, plan: Plan, key: str, source: Place, slots: asyncio.Semaphore
) -> dict[str, object]:
    async with slots:
        try:
            photo = await asyncio.to_thread(source.read, key)
        except OSError as error:
            return row_of(key, None, f"can't be read: {error}")
        for wait_s in (*OVERLOAD_WAITS_S, None):
            try:
                response = await client.classify(
                    [photo],
                    model=plan.model,
                    version=plan.version,
                    top_k=plan.top_k,
                    low_priority=True,
                )
            except InvalidRequest as error:
                return row_of(key, None, str(error))
            except Overloaded as error:
                if wait_s is None:
                    raise
                await asyncio.sleep(max(wait_s, error.retry_after_s or 0))
            else:
                return row_of(key, response, response.results[0].error)
    raise AssertionError("the last wait is None")


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of what ended the job: ours if there is one, for it says what to do."""
    found: list[BaseException] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        else:
            found.append(error)

    collect(group)
    return next((error for error in found if isinstance(error, PawprintError)), found[0])
