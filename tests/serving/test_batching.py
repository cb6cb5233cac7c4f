"""The laws of the batcher, with a model that answers each row with its own number."""

import asyncio
import gc
import math
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from serving.admission import Admission
from serving.batching import Answer, Batcher, BatchSettings, Call
from serving.errors import DeadlineExceeded, InvalidImage, Overloaded
from serving.inference_thread import InferenceThreads, Work
from serving.turns import LOW_EVERY, Priority
from tests.serving.held_model import until

LONG_S = 10.0


class Model:
    """Answers [n, 1] with twice itself; holds each batch while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.alone: list[bool] = []

    def __call__(self, rows: np.ndarray, alone: bool) -> tuple[np.ndarray]:
        self.batches.append([int(row) for row in rows[:, 0]])
        self.alone.append(alone)
        self.begun.release()
        assert self.gate.wait(LONG_S)
        if -1 in rows:
            raise ZeroDivisionError("a poisoned batch")
        return (rows * 2,)


@pytest.fixture
async def thread() -> AsyncIterator[InferenceThreads]:
    thread = InferenceThreads()
    yield thread
    await asyncio.to_thread(thread.close)


@pytest.fixture
def model() -> Model:
    return Model()


def batcher(model: Model, thread: InferenceThreads, **settings: float) -> Batcher:
    defaults = {"max_batch": 4, "max_delay_s": LONG_S, "max_queue": 64}
    return Batcher(model, BatchSettings(**{**defaults, **settings}), thread)  # type: ignore[arg-type]


def put(call: Call, row: int) -> "asyncio.Future[Answer]":
    place = call.place()
    place.fill(np.array([row]))
    return place.answer


def fail(call: Call) -> "asyncio.Future[Answer]":
    place = call.place()
    place.fail(InvalidImage("can't be decoded"))
    return place.answer


async def ask(batcher: Batcher, *rows: int, **options: object) -> list[Answer]:
    with batcher.admit(len(rows), **options) as call:
        return [await f for f in [put(call, row) for row in rows]]


def values(answers: list[Answer]) -> list[int]:
    return [int(answer.outputs[0][0]) for answer in answers]


async def begun(model: Model) -> None:
    assert await asyncio.to_thread(model.begun.acquire, timeout=LONG_S)


async def occupied(model: Model, batcher: Batcher) -> "asyncio.Task[list[Answer]]":
    """Let the thread run a batch of one, row 0, until the gate is opened."""
    model.gate.clear()
    task = asyncio.create_task(ask(batcher, 0))
    await begun(model)
    return task


async def queued(*coroutines: object) -> list["asyncio.Task[list[Answer]]"]:
    tasks = [asyncio.create_task(c) for c in coroutines]  # type: ignore[arg-type]
    await asyncio.sleep(0)  # each runs until it waits for its answers
    return tasks


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_an_idle_engine_starts_at_once(model: Model, thread: InferenceThreads) -> None:
    start = time.monotonic()
    assert values(await ask(batcher(model, thread), 7)) == [14]
    assert time.monotonic() - start < LONG_S / 2


async def test_a_busy_engine_gathers(model: Model, thread: InferenceThreads) -> None:
    b = batcher(model, thread)
    tasks = [await occupied(model, b), *await queued(*(ask(b, row) for row in range(1, 7)))]
    model.gate.set()
    answers = [values(await task) for task in tasks]
    assert answers == [[2 * row] for row in range(7)]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [(await task)[0].batch_size for task in tasks] == [1, 4, 4, 4, 4, 2, 2]


async def test_an_idle_engine_waits_only_for_photos_on_their_way(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    with b.admit(3) as call:
        futures = [put(call, 1), put(call, 2)]
        await asyncio.sleep(0.05)
        assert model.batches == []
        fail(call)  # nothing more to wait for
        await asyncio.wait_for(asyncio.gather(*futures), LONG_S / 2)
    assert model.batches == [[1, 2]]


async def test_it_waits_no_longer_than_max_delay(model: Model, thread: InferenceThreads) -> None:
    b = batcher(model, thread, max_delay_s=0.05)
    with b.admit(2) as call:
        start = time.monotonic()
        await put(call, 1)
        assert time.monotonic() - start >= 0.05
        await put(call, 2)
    assert model.batches == [[1], [2]]


async def test_what_a_full_batch_leaves_waits_no_longer_either(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread, max_delay_s=0.05)
    first = await occupied(model, b)
    with b.admit(6) as call:  # of which one does not come
        answers = [put(call, row) for row in range(1, 6)]
        model.gate.set()
        await asyncio.wait_for(asyncio.gather(first, *answers), LONG_S / 2)
    assert model.batches == [[0], [1, 2, 3, 4], [5]]


async def test_it_waits_no_longer_though_another_comes_and_leaves(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread, max_delay_s=0.05)
    with b.admit(2) as call:
        answer = put(call, 1)
        with b.admit(1):
            pass
        assert values([await asyncio.wait_for(answer, LONG_S / 2)]) == [2]


async def test_a_caller_that_leaves_while_decoding_holds_nobody_up(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    leaving = b.admit(5)
    task = asyncio.create_task(ask(b, 1))
    await asyncio.sleep(0.02)
    assert model.batches == []
    with leaving:
        pass
    assert values(await asyncio.wait_for(task, LONG_S / 2)) == [2]


async def test_places_are_filled_and_failed_from_any_thread(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    with b.admit(3) as call:
        places = [call.place() for _ in range(3)]
        await asyncio.gather(
            asyncio.to_thread(places[0].fill, np.array([5])),
            asyncio.to_thread(places[1].fail, InvalidImage("damaged")),
            asyncio.to_thread(places[2].fill, np.array([6])),
        )
        assert values([await places[0].answer, await places[2].answer]) == [10, 12]
        with pytest.raises(InvalidImage, match="damaged"):
            await places[1].answer
    assert b.admitted == 0


async def test_what_comes_after_its_call_has_left_is_dropped(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    with b.admit(1) as other:
        with b.admit(2) as leaving:
            places = [leaving.place(), leaving.place()]
        places[0].fill(np.array([1]))
        places[1].fail(InvalidImage("damaged"))
        assert b.waiting == 0 and b.admitted == 1
        assert values([await asyncio.wait_for(put(other, 3), LONG_S / 2)]) == [6]
    assert model.batches == [[3]]
    assert all(place.answer.cancelled() for place in places)


async def test_a_full_batch_does_not_wait(model: Model, thread: InferenceThreads) -> None:
    b = batcher(model, thread)
    with b.admit(5) as call:
        full = asyncio.gather(*[put(call, row) for row in range(4)])
        await asyncio.wait_for(full, LONG_S / 2)
        fail(call)


async def test_one_caller_of_many_photos_does_not_starve_another(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    first = await occupied(model, b)
    many, one, two = await queued(ask(b, *range(100, 140)), ask(b, 1), ask(b, 2, 3))
    model.gate.set()
    await asyncio.gather(first, many, one, two)
    assert model.batches[1] == [100, 1, 2, 101]
    assert model.batches[2] == [3, 102, 103, 104]


async def test_the_calls_of_one_stream_share_a_turn(model: Model, thread: InferenceThreads) -> None:
    b = batcher(model, thread)
    first = await occupied(model, b)
    stream = object()
    tasks = await queued(*(ask(b, row, caller=stream) for row in range(100, 110)), ask(b, 1))
    model.gate.set()
    await asyncio.gather(first, *tasks)
    assert model.batches[1] == [100, 1, 101, 102]


async def test_four_in_a_batch_one_cancelled_three_answered(
    model: Model, thread: InferenceThreads
) -> None:
    """While it waits: the cancelled one is not run at all."""
    b = batcher(model, thread)
    first = await occupied(model, b)
    tasks = await queued(*(ask(b, row) for row in (1, 2, 3, 4)))
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    model.gate.set()
    await first
    assert [values(await t) for t in (tasks[0], tasks[2], tasks[3])] == [[2], [6], [8]]
    assert tasks[1].cancelled()
    assert model.batches == [[0], [1, 3, 4]]


async def test_a_caller_that_leaves_a_running_batch_harms_nobody(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    model.gate.clear()
    with b.admit(1):  # a photo on its way: the engine waits until the batch is full
        tasks = await queued(*(ask(b, row) for row in (1, 2, 3, 4)))
        await begun(model)
    assert model.batches == [[1, 2, 3, 4]]
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    model.gate.set()
    assert [values(await t) for t in (tasks[0], tasks[2], tasks[3])] == [[2], [6], [8]]
    assert tasks[1].cancelled()


async def test_a_full_queue_refuses_and_recovers(model: Model, thread: InferenceThreads) -> None:
    b = batcher(model, thread, max_queue=8)
    first = await occupied(model, b)
    (waiting,) = await queued(ask(b, 1, 2, 3, 4, 5))
    with pytest.raises(Overloaded, match="3 photos asked for, 2 of 8 places free"):
        b.admit(3)
    with b.admit(2), pytest.raises(Overloaded):
        b.admit(1)
    waiting.cancel()
    await asyncio.wait([waiting])
    with b.admit(7), pytest.raises(Overloaded):
        b.admit(1)
    model.gate.set()
    await first
    assert values(await ask(b, *range(8))) == [2 * row for row in range(8)]


async def test_what_waits_past_its_deadline_is_told_and_not_run(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    first = await occupied(model, b)
    late, patient = await queued(
        ask(b, 1, 2, deadline=time.monotonic() + 1), ask(b, 3, deadline=time.monotonic() + 60)
    )
    await asyncio.sleep(1.05)
    model.gate.set()
    with pytest.raises(DeadlineExceeded, match="in the queue"):
        await late
    assert values(await patient) == [6]
    await first
    assert model.batches == [[0], [3]]
    with pytest.raises(DeadlineExceeded):
        b.admit(1, deadline=time.monotonic())


async def test_a_fault_of_the_model_reaches_every_caller_and_ends_there(
    model: Model, thread: InferenceThreads
) -> None:
    untaken: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: untaken.append(context))
    b = batcher(model, thread)
    first = await occupied(model, b)
    tasks = await queued(ask(b, 1), ask(b, -1), ask(b, 2, 3))
    model.gate.set()
    await first
    for task in tasks:
        with pytest.raises(ZeroDivisionError, match="poisoned"):
            await task
    assert values(await ask(b, 5)) == [10]
    b._admission.photo_s = 5.0
    with pytest.raises(ZeroDivisionError):
        await ask(b, -1)
    assert b._admission.photo_s == 5.0  # it says nothing about how fast photos are answered
    del task, tasks
    gc.collect()  # an exception that nobody took, as of row 3, would be logged now
    assert untaken == []


async def test_a_batcher_that_is_let_go_is_freed_without_the_garbage_collector(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    assert values(await ask(b, 1, 2)) == [2, 4]
    gone = weakref.ref(b)
    with no_garbage_collector():
        assert values(await ask(b, 3)) == [6]
        del b
        await until(lambda: gone() is None)  # what handed the answer out has to end first


async def test_models_on_one_thread_take_turns(model: Model, thread: InferenceThreads) -> None:
    settings = {"max_batch": 1, "max_delay_s": 0}
    one, two = batcher(model, thread, **settings), batcher(model, thread, **settings)
    first = await occupied(model, one)
    tasks = await queued(ask(one, 1, 2, 3), ask(two, 11, 12, 13))
    model.gate.set()
    answers = await asyncio.gather(first, *tasks)
    assert [values(answer) for answer in answers] == [[0], [2, 4, 6], [22, 24, 26]]
    assert model.batches == [[0], [1], [11], [2], [12], [3], [13]]


async def test_close_finishes_what_waits(model: Model) -> None:
    thread = InferenceThreads()
    b = batcher(model, thread)
    first = await occupied(model, b)
    (task,) = await queued(ask(b, 1, 2, 3, 4, 5, 6))
    with b.admit(1):  # which nobody waits for any longer
        closing = asyncio.create_task(asyncio.to_thread(thread.close))
        await asyncio.sleep(0.02)
        model.gate.set()
        assert values(await asyncio.wait_for(task, LONG_S / 2)) == [2, 4, 6, 8, 10, 12]
        await first
        await asyncio.wait_for(closing, LONG_S / 2)


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_cancellations(model: Model, thread: InferenceThreads, seed: int) -> None:
    """Whoever is cancelled when, every other call gets its own rows, and nothing is left."""
    generator = random.Random(seed)
    b = batcher(model, thread, max_delay_s=0.001, max_queue=10_000, max_batch=7)

    async def caller(number: int) -> bool:
        rows = [1000 * number + i for i in range(generator.randrange(1, 6))]
        with b.admit(len(rows)) as call:
            futures = []
            for row in rows:
                await asyncio.sleep(generator.random() * 0.003)
                if generator.random() < 0.1:
                    fail(call)
                else:
                    futures.append((row, put(call, row)))
            return all([values([await future]) == [2 * row] for row, future in futures])

    tasks = []
    for number in range(1, 400):
        tasks.append(asyncio.create_task(caller(number)))
        if generator.random() < 0.5:
            delay_s = generator.random() * 0.01
            asyncio.get_running_loop().call_later(delay_s, tasks[-1].cancel)
        if generator.random() < 0.2:
            await asyncio.sleep(0.001)
    await asyncio.wait(tasks)
    finished = [task.result() for task in tasks if not task.cancelled()]
    assert all(finished) and 100 < len(finished) < 399
    assert (b.admitted, b.waiting, b._coming, len(thread._sources)) == (0, 0, 0, 0)
    assert max(map(len, model.batches)) <= 7


async def test_high_priority_goes_first_and_low_never_stands_still(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread, max_queue=256)
    first = await occupied(model, b)
    low, high = await queued(ask(b, *range(500, 510), priority=Priority.LOW), ask(b, *range(1, 81)))
    model.gate.set()
    await asyncio.gather(first, low, high)
    order = [row for batch in model.batches[1:] for row in batch]
    assert [row for row in order if row < 500] == [*range(1, 81)]
    places = [place for place, row in enumerate(order) if row >= 500]
    assert places[0] > 4  # not in the first batch
    while_high_waits = [place for place in places if place < order.index(80)]
    assert len(while_high_waits) == 80 // (LOW_EVERY - 1)
    gaps = [b - a for a, b in zip(while_high_waits, while_high_waits[1:], strict=False)]
    assert set(gaps) == {LOW_EVERY}


async def test_low_priority_has_half_the_queue(model: Model, thread: InferenceThreads) -> None:
    b = batcher(model, thread, max_queue=8)
    with b.admit(3, priority=Priority.LOW):
        with pytest.raises(Overloaded, match="2 photos asked for, 1 of 8 places free"):
            b.admit(2, priority=Priority.LOW)
        with b.admit(5):
            pass
    with b.admit(8, priority=Priority.LOW):  # nobody else is here
        pass


async def test_a_caller_leaves_as_many_places_free_as_it_has(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread, max_queue=8)
    with b.admit(3, caller="a"):
        with pytest.raises(Overloaded, match="3 photos asked for, 2 of 8 places free"):
            b.admit(3, caller="a")
        with pytest.raises(Overloaded):
            b.admit(3, caller="a", priority=Priority.LOW)
        with b.admit(1, caller="a"):
            with pytest.raises(Overloaded):
                b.admit(1, caller="a")
            with b.admit(1, caller="b"), b.admit(1, caller="b"), b.admit(2):
                pass
    with b.admit(8, caller="a"):  # nobody else is here
        pass


def has_room(inside: list[Call], caller: object, priority: Priority) -> bool:
    """For a request of a stream, in a queue of 16; counted anew."""

    def photos(of: Callable[[Call], bool]) -> int:
        return sum(call.photos for call in inside if of(call))

    low = photos(lambda call: call.priority is Priority.LOW)
    if priority is Priority.LOW and (
        low >= 8 or photos(lambda call: call.streamed and call.priority is Priority.LOW) >= 4
    ):
        return False
    own = photos(lambda call: call.caller == caller)
    return photos(lambda call: call.streamed) < 8 and photos(lambda call: True) + own < 16


@pytest.mark.parametrize("seed", range(3))
async def test_requests_of_streams_wait_for_the_room_that_they_may_have(
    model: Model, thread: InferenceThreads, seed: int
) -> None:
    b, generator = batcher(model, thread, max_queue=16), random.Random(seed)
    inside: list[Call] = []
    line: list[tuple[asyncio.Task[Call], str, Priority]] = []
    come: list[Call] = []  # in their order
    seen: Counter[str] = Counter()
    alone = True  # no step but the last since all have come in

    async def join(photos: int, who: str, priority: Priority) -> Call:
        call = await b.admit_in_turn(photos, deadline=math.inf, caller=who, priority=priority)
        come.append(call)
        return call

    async def come_in() -> None:
        nonlocal line
        for _ in range(3):
            await asyncio.sleep(0)
        line = [one for one in line if not one[0].done()]
        for call in come:
            assert not alone or has_room(inside, call.caller, call.priority)
            inside.append(call)
        seen["let in"] += len(come)
        come.clear()

    for _ in range(1500):
        step = generator.choice(["call", "join", "join", "leave", "cancel"])
        who, photos = generator.choice("abcd"), generator.choice([1, 1, 2, 5])
        priority = generator.choice(list(Priority))
        if step == "call":
            try:
                inside.append(b.admit(photos, caller=who, priority=priority))
            except Overloaded:
                seen["refused"] += 1
        elif step == "join" and len(line) < 20:
            line.append((asyncio.create_task(join(photos, who, priority)), who, priority))
        elif step == "leave" and inside:
            with inside.pop(generator.randrange(len(inside))):
                pass
        elif step == "cancel" and line:
            line.pop(generator.randrange(len(line)))[0].cancel()  # maybe as it is let in
            seen["cancelled"] += 1
        if settles := generator.random() < 0.7:  # else several of these come in one moment
            await come_in()
            assert b.admitted == sum(call.photos for call in inside)
            assert not any(has_room(inside, who, priority) for _, who, priority in line)
        alone = settles
    assert min(seen[what] for what in ("refused", "cancelled", "let in")) > 50, seen
    await come_in()
    while inside:
        with inside.pop():
            pass
        await come_in()
    assert not line  # nobody waits for ever
    assert b.admitted == 0 and not b._line and b not in thread._sources


async def test_a_stream_may_leave_in_the_very_moment_in_which_it_is_let_in_or_refused(
    model: Model, thread: InferenceThreads
) -> None:
    b, soon = batcher(model, thread, max_queue=4), time.monotonic() + 0.05
    with b.admit(4):
        leaving = [
            asyncio.create_task(
                b.admit_in_turn(1, deadline=deadline, caller=caller, priority=Priority.HIGH)
            )
            for caller, deadline in (("a", math.inf), ("b", soon), ("c", soon))
        ]
        while time.monotonic() <= soon:
            await asyncio.sleep(0.01)
    assert b.admitted == 1  # and the others are too late
    for task in leaving[:2]:
        task.cancel()
    await asyncio.wait(leaving)
    assert [task.cancelled() for task in leaving] == [True, True, False]
    assert isinstance(leaving[2].exception(), DeadlineExceeded) and b.admitted == 0


async def test_streams_come_in_by_turns(model: Model, thread: InferenceThreads) -> None:
    """One with many requests that wait does not hold up another's one."""
    b = batcher(model, thread, max_queue=8)

    def join(caller: str) -> "asyncio.Task[Call]":
        waits = b.admit_in_turn(1, deadline=math.inf, caller=caller, priority=Priority.HIGH)
        return asyncio.create_task(waits)

    many = [join("a") for _ in range(20)]
    one = join("b")
    await asyncio.sleep(0)
    assert sum(task.done() for task in many) == 4 and not one.done()
    with many[0].result(), many[1].result():
        pass
    await asyncio.sleep(0)
    assert one.done() and sum(task.done() for task in many) == 5
    for task in many[5:]:
        task.cancel()
    for call in (one, *many[2:5]):
        with call.result():
            pass
    await asyncio.wait(many)
    assert b.admitted == 0


async def test_an_answered_call_leaves_however_much_its_caller_has_waiting(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread, max_queue=100_000)
    first = await occupied(model, b)
    with b.admit(40_000, caller="a") as many:
        for row in range(40_000):
            put(many, row)
        leaving_s = 0.0
        with no_garbage_collector():
            for _ in range(100):
                call = b.admit(1, caller="a")
                with pytest.raises(InvalidImage):
                    await fail(call)
                start = time.thread_time()
                with call:
                    pass
                leaving_s += time.thread_time() - start
    assert leaving_s < 0.05
    assert b.waiting == 0
    model.gate.set()
    await first


async def learnt(batcher: Batcher, model: Model, photo_s: float) -> None:
    """Let the batcher see two full batches that take `photo_s` for each photo."""
    run = batcher._run_model

    def slow(rows: np.ndarray, alone: bool) -> object:
        time.sleep(photo_s * len(rows))
        return run(rows, alone)

    batcher._run_model = slow  # type: ignore[assignment]
    await ask(batcher, *range(1, 9))


async def test_a_call_whose_deadline_would_pass_in_the_queue_is_refused_at_once(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    first = await occupied(model, b)
    (waiting,) = await queued(ask(b, *range(10, 30)))
    b._admission.photo_s = 2.0
    now = time.monotonic()
    with pytest.raises(Overloaded, match="after the deadline") as caught:
        b.admit(20, deadline=now + 50)
    assert caught.value.retry_after_s == 42  # all 21 that are here
    with b.admit(1, deadline=now + 50):  # has its turn after one photo, not after twenty
        pass
    with pytest.raises(Overloaded), b.admit(1, deadline=now + 4):
        pass
    with b.admit(20, deadline=now + 6000):
        pass
    model.gate.set()
    await asyncio.gather(first, waiting)


async def test_what_a_caller_has_waiting_is_ahead_of_its_next_call(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    first = await occupied(model, b)
    waiting = await queued(*(ask(b, row, caller="a") for row in range(10, 30)))
    b._admission.photo_s = 2.0
    deadline = time.monotonic() + 30
    with pytest.raises(Overloaded, match="after the deadline"):
        b.admit(1, caller="a", deadline=deadline)
    with b.admit(1, caller="b", deadline=deadline):
        pass
    model.gate.set()
    await asyncio.gather(first, *waiting)


async def test_who_can_still_be_answered_in_time_goes_before_who_can_hardly(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    first = await occupied(model, b)
    now = time.monotonic()
    tight = await queued(*(ask(b, row, deadline=now + 20) for row in (1, 2, 3)))
    calm = await queued(*(ask(b, row, deadline=now + 60) for row in (4, 5, 6, 7)))
    b._admission.photo_s = 10.0  # so a batch of four takes 40 s
    model.gate.set()
    for call in tight:
        with pytest.raises(DeadlineExceeded):
            await call
    assert [values(await call) for call in (first, *calm)] == [[0], [8], [10], [12], [14]]
    assert model.batches == [[0], [4, 5, 6, 7]]


async def test_where_there_is_room_who_can_hardly_be_answered_is_tried(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    first = await occupied(model, b)
    now = time.monotonic()
    calls = await queued(ask(b, 1, deadline=now + 20), ask(b, 2), ask(b, 3, deadline=now + 20))
    b._admission.photo_s = 10.0
    model.gate.set()
    assert [values(await call) for call in (first, *calls)] == [[0], [2], [4], [6]]


async def test_nearly_all_that_an_overloaded_engine_does_is_in_time(
    thread: InferenceThreads,
) -> None:
    """Five times what it can do, by callers who wait for 0.3 s: whatever is run for those who have
    gone by then is lost."""
    ran, in_time = 0, 0

    def run(rows: np.ndarray, alone: bool) -> tuple[np.ndarray]:
        nonlocal ran
        ran += len(rows)
        time.sleep(0.005 * len(rows))
        return (rows,)

    b = Batcher(run, BatchSettings(max_batch=4, max_delay_s=0.0, max_queue=256), thread)

    async def call() -> None:
        nonlocal in_time
        deadline = time.monotonic() + 0.3
        try:
            await ask(b, 1, deadline=deadline, caller="shop")
        except (Overloaded, DeadlineExceeded):
            return
        in_time += time.monotonic() <= deadline

    async with asyncio.TaskGroup() as calls:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for _ in range(5):
                calls.create_task(call())
            await asyncio.sleep(0.005)
    assert ran > 100 and in_time > 0.8 * ran


async def test_a_photo_that_came_too_late_says_nothing_about_how_fast_others_are(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread)
    await learnt(b, model, 0.02)
    photo_s = b._admission.photo_s
    with b.admit(30) as call:
        places = [call.place() for _ in range(30)]
        for place in places:
            place.fail(DeadlineExceeded("too late to be decoded"))
        for place in places:
            with pytest.raises(DeadlineExceeded):
                await place.answer
    assert b._admission.photo_s == photo_s
    with b.admit(2) as call, pytest.raises(InvalidImage):
        await fail(call)
    assert b._admission.photo_s != photo_s  # one that is damaged took work


def test_a_call_with_none_before_it_is_tried_whatever_the_estimate_says() -> None:
    admission = Admission(8)
    admission.enter(1, math.inf, "a", Priority.LOW)
    admission.photo_s = 1000.0
    admission.enter(1, time.monotonic() + 60, "b", Priority.HIGH)
    with pytest.raises(Overloaded, match="after the deadline"):
        admission.enter(1, time.monotonic() + 60, "c", Priority.HIGH)


def test_all_of_high_priority_is_before_a_call_of_low_priority() -> None:
    admission, deadline = Admission(64), time.monotonic() + 60
    admission.enter(20, math.inf, "a", Priority.HIGH)
    admission.enter(20, math.inf, "c", Priority.LOW)
    admission.photo_s = 2.55
    with pytest.raises(Overloaded, match="would come in 62 s"):  # those twenty, and one of c
        admission.enter(1, deadline, "b", Priority.LOW)
    admission.enter(1, deadline, "b", Priority.HIGH)  # takes turns with those twenty


def test_photos_that_none_wait_behind_make_the_estimate_no_higher() -> None:
    admission, at = Admission(8), time.monotonic()
    admission.enter(4, math.inf, "a", Priority.HIGH)
    admission.photo_s = 0.01
    admission.answered(4, at + 8)
    assert admission.photo_s == 0.01


def test_who_comes_while_others_wait_makes_photos_no_faster() -> None:
    admission, at = Admission(8), time.monotonic()
    admission.enter(4, math.inf, "a", Priority.HIGH)
    admission.answered(1, at + 1)
    admission.enter(1, math.inf, "b", Priority.HIGH)
    admission.answered(1, at + 2)
    assert admission.photo_s == pytest.approx(1, abs=0.01)


def test_one_slow_photo_moves_the_estimate_by_little_and_many_by_much() -> None:
    admission, at = Admission(1000), time.monotonic()
    admission.enter(1000, math.inf, "a", Priority.HIGH)
    admission.answered(1, at)
    for photos, low, high in ((1, 0.05, 0.1), (100, 0.9, 1.0)):
        admission.photo_s = 0.01
        at += photos  # a second each
        admission.answered(photos, at)
        assert low < admission.photo_s < high


def test_an_answer_from_before_a_pause_takes_no_time_not_less() -> None:
    admission, before = Admission(8), time.monotonic()
    admission.enter(1, math.inf, "a", Priority.HIGH)
    admission.answered(1, before - 1.0)
    assert admission.photo_s == 0.0


async def test_photos_that_are_still_to_be_decoded_are_ahead_too(
    model: Model, thread: InferenceThreads
) -> None:
    """Decoding, and not the model, is what takes 20 ms a photo here."""
    b = batcher(model, thread, max_delay_s=0.0)
    with b.admit(30) as call:
        for row in range(20):
            await asyncio.sleep(0.02)
            await put(call, row)
        photo_s = b._admission.photo_s
        assert 0.02 <= photo_s < 0.3  # of one, not of twenty
        deadline = time.monotonic() + 15 * photo_s
        with pytest.raises(Overloaded, match="after the deadline"), b.admit(10, deadline=deadline):
            pass
        with b.admit(1, deadline=deadline):
            pass


async def test_an_idle_server_tries_whatever_the_estimate_says(
    model: Model, thread: InferenceThreads
) -> None:
    """Else an estimate that is too high could never be corrected."""
    b = batcher(model, thread)
    b._admission.photo_s = 1000.0
    for row in range(60):
        assert values(await ask(b, row, deadline=time.monotonic() + LONG_S)) == [2 * row]
    assert b._admission.photo_s < 0.01


async def test_a_full_queue_tells_each_call_a_time_of_its_own(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread, max_queue=8)
    await learnt(b, model, 0.02)

    def told(photos: int) -> float:
        with pytest.raises(Overloaded) as caught:
            b.admit(photos)
        assert caught.value.retry_after_s is not None
        return caught.value.retry_after_s

    with b.admit(8):
        each, photo_s = [told(2) for _ in range(10)], b._admission.photo_s
        assert each[0] == pytest.approx(6 * photo_s)  # half of the queue, and its own two photos
        assert np.diff(each) == pytest.approx([2 * photo_s] * 9, abs=0.01)
        for _ in range(2000):
            longest = told(8)
        assert longest == pytest.approx(60)


async def test_batches_are_padded_to_the_sizes_given(
    model: Model, thread: InferenceThreads
) -> None:
    b = batcher(model, thread, max_batch=8, sizes=(1, 2, 4, 8))
    first = await occupied(model, b)
    tasks = await queued(*(ask(b, row) for row in range(1, 6)))
    model.gate.set()
    await first
    assert [values(await task) for task in tasks] == [[2], [4], [6], [8], [10]]
    assert (await tasks[0])[0].batch_size == 5
    assert model.batches == [[0], [1, 2, 3, 4, 5, 0, 0, 0]]


@pytest.mark.parametrize(
    "change", [{"max_batch": 0}, {"max_delay_s": -1}, {"max_delay_s": 11}, {"max_queue": 3}]
)
def test_settings_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        BatchSettings(**{"max_batch": 4, "max_delay_s": 0, "max_queue": 8, **change})


async def test_several_threads_share_what_waits(model: Model) -> None:
    """Two batches run at once; what gathers meanwhile is split between those that become free."""
    threads = InferenceThreads(2)
    model.gate.clear()
    b = batcher(model, threads, max_batch=8)
    waiting = [asyncio.create_task(ask(b, row)) for row in (1, 2)]
    for _ in waiting:
        assert await asyncio.to_thread(model.begun.acquire, timeout=LONG_S)
    assert sorted(model.batches) == [[1], [2]]
    model.gate.set()
    await asyncio.gather(*waiting)
    answers = await ask(b, *range(10, 16))
    assert values(answers) == [2 * row for row in range(10, 16)]
    assert max(len(batch) for batch in model.batches) <= 5
    await asyncio.to_thread(threads.close)


async def test_a_thread_wakes_another_for_what_it_leaves(model: Model) -> None:
    threads = InferenceThreads(2)
    b = batcher(model, threads)
    model.gate.clear()
    with b.admit(3) as call:
        answers = [put(call, 1), put(call, 2)]
        await asyncio.sleep(0.05)  # both wait for the third
        fail(call)
        for _ in answers:
            await asyncio.wait_for(begun(model), LONG_S / 2)
        model.gate.set()
        await asyncio.gather(*answers)
    assert sorted(model.batches) == [[1], [2]]
    await asyncio.to_thread(threads.close)


async def test_a_thread_that_runs_a_batch_has_no_share_of_the_next(model: Model) -> None:
    threads = InferenceThreads(2)
    b = batcher(model, threads)
    first = await occupied(model, b)
    (others,) = await queued(ask(b, 1, 2, 3, 4))
    await begun(model)
    assert model.batches == [[0], [1, 2, 3, 4]]
    model.gate.set()
    await asyncio.gather(first, others)
    await asyncio.to_thread(threads.close)


async def test_a_thread_rests_while_another_runs_all_that_is_here(model: Model) -> None:
    threads, taken = InferenceThreads(2), 0
    b = batcher(model, threads)
    take = b.take

    def counted(idle: int, running: int) -> Work:
        nonlocal taken
        taken += 1
        return take(idle, running)

    b.take = counted  # type: ignore[method-assign]
    task = await occupied(model, b)
    with b.admit(1):  # wakes the other
        pass
    model.gate.set()
    await task
    await asyncio.to_thread(threads.close)
    assert taken == 1


async def test_a_batch_is_told_whether_it_is_alone(model: Model) -> None:
    threads = InferenceThreads(2)
    b = batcher(model, threads)
    await ask(b, 1)
    model.begun.acquire()
    model.gate.clear()
    waiting = []
    for row in (2, 3):
        waiting.append(asyncio.create_task(ask(b, row)))
        assert await asyncio.to_thread(model.begun.acquire, timeout=LONG_S)
    assert model.alone == [True, True, False]
    model.gate.set()
    await asyncio.gather(*waiting)
    model.gate.clear()
    shared = asyncio.create_task(ask(b, 4, 5))  # one for each thread: neither has all the cores
    for _ in "45":
        await begun(model)
    assert model.alone[3:] == [False, False]
    model.gate.set()
    await shared
    await asyncio.to_thread(threads.close)
