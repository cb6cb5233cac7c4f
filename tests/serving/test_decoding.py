"""Who decodes when: callers do not wait for all photos of another one."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from serving.classification import _decode
from serving.client import AsyncClient
from serving.decoding import Decoders, Job
from serving.errors import DeadlineExceeded, PawprintError
from serving.turns import LOW_EVERY, Priority
from tests.conftest import running_server
from tests.photos import encode, jpeg
from tests.waiting import until

LONG_S = 10.0
THREADS = 2


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(THREADS)
    yield decoders
    decoders.close()


class Jobs:
    """Each writes its name down and waits for the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[str] = []
        self.done = threading.Semaphore(0)

    def make(self, name: str, *, large: bool = False) -> Job:
        def job(before_large: Callable[[], object]) -> None:
            if large:
                before_large()
            self.begun.append(name)
            assert self.gate.wait(LONG_S)
            self.done.release()

        return job

    def finish(self, count: int) -> list[str]:
        self.gate.set()
        for _ in range(count):
            assert self.done.acquire(timeout=LONG_S)
        return self.begun


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def test_all_jobs_of_a_call_run_in_their_order(jobs: Jobs) -> None:
    names = [str(i) for i in range(20)]
    jobs.gate.set()
    one = Decoders(1)
    one.start([jobs.make(name) for name in names], "a", Priority.HIGH)
    assert jobs.finish(20) == names
    one.close()


def test_one_callers_many_photos_do_not_hold_up_anothers_one(
    decoders: Decoders, jobs: Jobs
) -> None:
    decoders.start([jobs.make("many") for _ in range(30)], "a", Priority.HIGH)
    decoders.start([jobs.make("one")], "b", Priority.HIGH)
    assert jobs.finish(31).index("one") <= THREADS + 1


def test_nor_do_the_many_calls_of_one_caller(decoders: Decoders, jobs: Jobs) -> None:
    for _ in range(30):
        decoders.start([jobs.make("many")], "a", Priority.HIGH)
    decoders.start([jobs.make("one")], "b", Priority.HIGH)
    assert jobs.finish(31).index("one") <= THREADS + 1


def test_large_pictures_hold_up_one_thread_and_no_other(decoders: Decoders, jobs: Jobs) -> None:
    decoders.start([jobs.make("large", large=True) for _ in range(5)], "a", Priority.HIGH)
    decoders.start([jobs.make("small")], "b", Priority.HIGH)
    until(lambda: len(jobs.begun) == THREADS)
    assert sorted(jobs.begun) == ["large", "small"]
    assert jobs.finish(6).count("large") == 5


async def test_large_photos_that_come_at_once_are_all_answered(models: Path) -> None:
    large = encode(Image.new("L", (4001, 3000)), "PNG")
    async with (
        running_server(models, decode_threads=THREADS) as running,
        AsyncClient(running.address) as client,
    ):
        response = await client.classify([large] * 3, model="pets")
    assert [result.error for result in response.results] == [None] * 3


async def test_a_photo_for_which_there_is_no_memory_fails_its_call_and_no_other(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    async with running_server(models) as running, AsyncClient(running.address) as client:
        monkeypatch.setattr("serving.classification.decode", no_memory)
        with pytest.raises(PawprintError, match="internal error of the server"):
            await client.classify([jpeg()], model="pets", timeout_s=LONG_S)
        monkeypatch.undo()
        assert (await client.classify([jpeg()], model="pets")).results[0].error is None


async def test_what_would_come_too_late_or_to_nobody_is_not_decoded(models: Path) -> None:
    async with running_server(models) as running:
        classifier, served = running.server._classifier, running.server.catalogue.find("pets", "")
        spec, decoded = served.engine.manifest.preprocessing, list[tuple[float, float]]()
        with served.batcher.admit(1) as gone:
            left = gone.place()
        _decode(jpeg(), spec, classifier.limits, left, decoded, lambda: None)
        with served.batcher.admit(2, deadline=time.monotonic() + 0.05) as call:
            late, early = call.place(), call.place()
            _decode(jpeg(), spec, classifier.limits, early, decoded, lambda: None)
            while time.monotonic() <= call.deadline:
                await asyncio.sleep(0.01)
            _decode(jpeg(), spec, classifier.limits, late, decoded, lambda: None)
            with pytest.raises(DeadlineExceeded):
                await late.answer
    assert len(decoded) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_picture_that_fails_holds_up_no_other(threads: int, jobs: Jobs) -> None:
    def failing(before_large: Callable[[], object]) -> None:
        before_large()
        raise MemoryError

    some = Decoders(threads)
    large = [jobs.make(str(n), large=True) for n in range(4)]
    some.start([failing, *large[:3], failing, large[3]], "a", Priority.HIGH)
    assert sorted(jobs.finish(4)) == ["0", "1", "2", "3"]
    some.close()


def test_low_priority_waits_for_high_and_never_stands_still(jobs: Jobs) -> None:
    one = Decoders(1)
    one.start([jobs.make("first")], "a", Priority.HIGH)
    for caller in range(30):
        one.start([jobs.make("low")], caller, Priority.LOW)
    one.start([jobs.make("high") for _ in range(40)], "b", Priority.HIGH)
    begun = jobs.finish(71)
    assert [i for i, name in enumerate(begun[:41]) if name == "low"] == [
        LOW_EVERY - 1,
        2 * LOW_EVERY - 1,
    ]
    one.close()


def test_each_job_runs_once_whoever_starts_them(decoders: Decoders) -> None:
    lock, ran, done = threading.Lock(), [0] * 600, threading.Semaphore(0)

    def job(number: int) -> Job:
        def run(before_large: Callable[[], object]) -> None:
            if number % 2:
                before_large()
            with lock:
                ran[number] += 1
            done.release()

        return run

    def start(numbers: range, seed: int) -> None:
        drawn, left = random.Random(seed), list(numbers)
        while left:
            some = [left.pop() for _ in range(min(len(left), drawn.randint(1, 7)))]
            decoders.start([job(n) for n in some], drawn.randrange(5), drawn.choice(list(Priority)))

    starters = [threading.Thread(target=start, args=(range(i, 600, 3), i)) for i in range(3)]
    for starter in starters:
        starter.start()
    for _ in ran:
        assert done.acquire(timeout=LONG_S)
    for starter in starters:
        starter.join()
    assert ran == [1] * 600
