"""Operators and trainers at work, in any order, under callers: what answers is what the rules say.

    python -m tests.faults.model_control [--operations 300] [--seed 1] [--seeds 1]

A server in this process over a real repository. Callers call by name, number and alias, with and
without a routing key, alone, in streams and over the Open Inference Protocol. Meanwhile versions
are published, broken, deleted and brought back, aliases move, versions are loaded and unloaded,
settings change, engines fail: one operation at a time, or two at once. Every call must have an
outcome that control_rules.py allows for the time that it took; once an operation has settled, all
that the server says of itself must agree with the rules, and no other engine be in memory. At the
end no task, thread or engine is left. A fault is printed with the last operations.
"""

import argparse
import asyncio
import gc
import logging
import random
import re
import threading
import time
import weakref
from collections import Counter, deque
from pathlib import Path

from serving import model_control
from serving.engine import Engine
from tests.conftest import Running, running_server
from tests.faults.control_callers import Callers, Journal
from tests.faults.control_operations import ON_DISK, Operations
from tests.faults.control_repository import Publisher
from tests.faults.control_rules import NAMES, Model, Op, World, ways
from tests.faults.control_surfaces import Surfaces, differences, due
from tests.faults.script import conclude
from tests.ports import free_ports

POLL_S = 0.02
SETTLED_WITHIN_S = 10.0
OF_GRPC_OR_ASYNCIO = re.compile("^asyncio_|_poll_wrapper")


class Run:
    def __init__(self, folder: Path, seed: int) -> None:
        self.journal = Journal()
        self.folder = folder
        self.chance = random.Random(seed)
        self.done: deque[str] = deque(maxlen=14)
        self.kinds: Counter[str] = Counter()
        self.earlier = [weakref.ref(engine) for engine in engines()]

    @property
    def faults(self) -> list[str]:
        return self.journal.faults

    async def run(self, operations: int) -> bool:
        root = self.folder / "models"
        publisher = Publisher(root)
        models = {name: Model() for name in NAMES}
        world = World(models)
        for name in NAMES:
            for build in ("1", "2"):
                publisher.publish(name, build, "")
                world.apply(("publish", name, build, ""))
        admin_port, metrics_port = free_ports(2)
        chosen = Operations(publisher, self.chance)
        for _ in range(self.chance.randrange(20)):
            (op, *_) = chosen.choose(world)
            later = world.branch()
            if op[0] in ON_DISK and later.apply(op) and later.starts():
                await chosen.do(op)
                world.apply(op)
                self.done.append(f"before: {' '.join(op)}")
        world.look()
        before = threads()
        settings = {"poll_s": POLL_S, "admin_port": admin_port, "metrics_port": metrics_port}
        self.journal.epochs[0].worlds = [world]
        worlds = [world]
        async with running_server(root, **settings) as running:
            surfaces = Surfaces(running, admin_port, metrics_port)
            callers = Callers(running.address, self.journal, self.chance.getrandbits(32))
            chosen.calls(running, surfaces)
            for _ in range(operations):
                ops = chosen.choose(worlds[0])
                self.kinds.update(op[0] for op in ops)
                self.done.append(
                    f"{self.journal.now + 1}: {' AND '.join(' '.join(o) for o in ops)}"
                )
                worlds = await self.operate(ops, worlds, running, surfaces, chosen)
                if self.faults:
                    break
            callers.ended.set()
            await running.server.drain()
            await callers.stop()
            await surfaces.close()
            self.journal.judge()
        del running, chosen, surfaces
        await self.ends_cleanly(before)
        if self.faults:
            print("\n".join(["the last operations:", *self.done, "faults:", *self.faults[:5]]))
        return not self.faults

    async def operate(
        self,
        ops: list[Op],
        worlds: list[World],
        running: Running,
        surfaces: Surfaces,
        chosen: Operations,
    ) -> list[World]:
        self.journal.begin()
        during = self.journal.epochs[-1]
        statuses = [*await asyncio.gather(*(chosen.do(op) for op in ops))]
        possible_ways = [way for world in worlds for way in ways(world, ops)]
        agreeing = [way for way in possible_ways if way[0] == statuses]
        if not agreeing:
            allowed = [way[0] for way in possible_ways]
            self.faults.append(f"{ops} had {statuses}, and one of {allowed} was due")
            agreeing = possible_ways
        if any(way[2].control == "poll" for way in agreeing):
            await looks(running, 3)
        restarts = any(
            m.restarting for _, seen, _ in agreeing for w in seen for m in w.models.values()
        )
        deadline = time.monotonic() + (SETTLED_WITHIN_S if restarts else 0)
        while True:
            said = await surfaces.read()
            found = [(way, differences(said, due(way[2]))) for way in agreeing]
            if any(not wrong for _, wrong in found) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        ends = [way for way, wrong in found if not wrong]
        if not ends:
            self.faults.extend(found[0][1])
            self.done.append(f"(due: {agreeing[0][2]})")
            ends = agreeing
        during.worlds = [seen for way in ends for seen in way[1]]
        after: list[World] = []
        for _, _, end in ends:
            if end not in after:
                after.append(end)
        self.journal.begin(after)
        await self.memory(after)
        self.journal.judge()
        return after

    async def memory(self, worlds: list[World]) -> None:
        """Engines of what was let go are gone."""
        due = {sum(len(m.served) for m in world.models.values()) for world in worlds}
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while (there := self.engines()) not in due:
            if time.monotonic() > deadline:
                self.faults.append(f"{there} engines are in memory, and {due} are served")
                return
            await asyncio.sleep(0.05)

    def engines(self) -> int:
        """In memory, but for those that other work of this process had left there."""
        earlier = {id(engine) for ref in self.earlier if (engine := ref()) is not None}
        return sum(id(engine) not in earlier for engine in engines())

    async def ends_cleanly(self, before: set[str]) -> None:
        """before: the threads of then."""
        await asyncio.sleep(0)
        if own := [
            repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()
        ]:
            self.faults.append(f"tasks are left: {own}")
        if left := {n for n in threads() - before if not OF_GRPC_OR_ASYNCIO.search(n)}:
            self.faults.append(f"threads are left: {left}")
        if there := self.engines():
            self.faults.append(f"{there} engines are left in memory")


async def looks(running: Running, count: int) -> None:
    """Until the server has looked at its repository so often."""
    troubles, deadline = running.server.control.troubles, time.monotonic() + SETTLED_WITHIN_S
    for _ in range(count):
        last = troubles.last_look
        while troubles.last_look == last:
            assert time.monotonic() < deadline, "the server does not look at its repository"
            await asyncio.sleep(0.002)


def engines() -> list[Engine]:
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Engine)]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


class Heard(logging.Handler):
    """Errors that nobody expects."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.said.append(f"{record.getMessage()}: {record.exc_info}")


async def controlled(folder: Path, operations: int, seed: int) -> bool:
    waits, model_control.RESTART_WAITS_S = model_control.RESTART_WAITS_S, (0.05,)
    heard, log = Heard(), logging.getLogger("serving")
    log.addHandler(heard)
    log.propagate = False  # pytest keeps records, and with an error the frames that it came through
    run = Run(folder, seed)
    begin = time.monotonic()
    try:
        sound = await run.run(operations)
    finally:
        model_control.RESTART_WAITS_S = waits
        log.removeHandler(heard)
        log.propagate = True
    print(
        f"seed {seed}: {run.kinds.total()} operations {dict(run.kinds)}, calls "
        f"{dict(run.journal.counts)}, {time.monotonic() - begin:.0f} s, "
        f"unexpected errors: {heard.said[:3]}",
        flush=True,
    )
    return sound and not heard.said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()

    async def all_seeds(folder: Path) -> bool:
        sound = True
        for seed in range(options.seed, options.seed + options.seeds):
            sound &= await controlled(folder / str(seed), options.operations, seed)
        return sound

    conclude(all_seeds)


if __name__ == "__main__":
    main()
