"""Very many photos, from a folder or a bucket, to a Parquet data set: in parts, resumable.

<out>/_plan.json                     what the parts are parts of; another job is refused
<out>/part-00012-of-00100.parquet    written whole, in one step; one that is there is done

Parts depend on nothing but the plan, so any number of machines can share them: each takes those
whose number is its rank modulo the number of machines. Stopped anywhere, it goes on where it was.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from serving.async_client import AsyncClient
from serving.batch_plan import Plan, Share
from serving.client_messages import FIRST_WAIT_S, LONGEST_WAIT_S
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PawprintError,
    Unavailable,
)
from serving.parquet import failed_rows, parquet_of, row_of
from serving.places import Place

# A job ends when no photo has been answered for so long, seconds: a rolling restart takes less.
PATIENCE_S = 60.0
# If so many photos, spread over a job, can't be read, none can.
_TRIED = 100


class Patience:
    """With servers that are full, away or without the version; one for all calls of a job."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._silent_since: float | None = None  # the first failure after the latest answer

    def answered(self) -> None:
        self._silent_since = None

    def has_ended(self) -> bool:
        """Told of each failure."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since > self._limit_s


class Photos:
    """Those of a job. Where none can be read, that is no fault of one of them."""

    def __init__(self, source: Place, keys: Sequence[str]) -> None:
        self._source, self._keys = source, keys
        self._some_can_be_read = len(keys) == 1  # or there is but the one
        self._trying = asyncio.Lock()

    async def read(self, key: str) -> bytes:
        """Raises OSError where this one can't be read, Unavailable where none can."""
        try:
            photo = await asyncio.to_thread(self._source.read, key)
        except OSError:
            async with self._trying:
                if not self._some_can_be_read:
                    await asyncio.to_thread(self._require_some)
                    self._some_can_be_read = True
            raise
        self._some_can_be_read = True
        return photo

    def _require_some(self) -> None:
        tried = self._keys[:: -(-len(self._keys) // _TRIED)]
        for key in tried:
            try:
                self._source.read(key)
                return
            except OSError as error:
                last = error
        raise Unavailable(
            f"the photos in {self._source.location} can't be read: {last} ({len(tried)} were tried)"
        ) from last


async def run_job(
    client: AsyncClient,
    plan: Plan,
    share: Share,
    keys: Sequence[str],
    source: Place,
    out: Place,
    in_flight: int,
    done: Callable[[int], None],
    *,
    patience_s: float = PATIENCE_S,
) -> int:
    """Make the parts of this share that are not there yet; returns how many photos in the share
    failed, now or earlier.

    done: told the photos of each part as it is finished. Raises Unavailable, DeadlineExceeded,
    NotFound, ...: whatever is no fault of one photo ends the job, to be gone on with later.
    """
    there = await asyncio.to_thread(out.files)
    patience, photos = Patience(patience_s), Photos(source, keys)
    failed = 0
    for index in share.indices(plan):
        part = keys[index * plan.part_photos : (index + 1) * plan.part_photos]
        name = plan.part_name(index)
        if name in there:
            failed += failed_rows(await asyncio.to_thread(out.read, name), name)
        else:
            slots = asyncio.Semaphore(in_flight)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_classify(client, plan, key, photos, slots, patience))
                    for key in part
                ]
            rows = [task.result() for task in tasks]
            failed += sum(row["error"] is not None for row in rows)
            await asyncio.to_thread(out.write, name, parquet_of(rows, familiarity=plan.familiarity))
        done(len(part))
    return failed


async def _classify(
    client: AsyncClient,
    plan: Plan,
    key: str,
    photos: Photos,
    slots: asyncio.Semaphore,
    patience: Patience,
) -> dict[str, object]:
    async with slots:
        try:
            photo = await photos.read(key)
        except OSError as error:
            return row_of(key, None, f"can't be read: {error}")
        wait_s = FIRST_WAIT_S
        while True:
            try:
                response = await client.classify(
                    [photo],
                    model=plan.model,
                    version=plan.version,
                    top_k=plan.top_k,
                    low_priority=True,
                )
            except InvalidRequest as error:
                patience.answered()
                return row_of(key, None, str(error))
            # NotFound: a version that is new is not on every server in the same moment.
            except (Overloaded, Unavailable, DeadlineExceeded, NotFound) as error:
                if patience.has_ended():
                    raise _with_way_out(error, plan) from error
                told_s = error.retry_after_s if isinstance(error, Overloaded) else None
                await asyncio.sleep(max(wait_s, told_s or 0))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                patience.answered()
                return row_of(key, response, response.results[0].error)


def _with_way_out(error: PawprintError, plan: Plan) -> PawprintError:
    if not isinstance(error, NotFound):
        return error
    return NotFound(
        f"{error}; the job in --out goes on with version {plan.version} alone: serve that too "
        "(serve --versions, or an alias of it), or choose another --out"
    )


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of what ended the job: ours if there is one, for it says what to do."""
    first: BaseException = group.subgroup(PawprintError) or group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
