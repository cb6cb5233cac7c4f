"""200 reloads of a served model under load: every call is answered, and memory stays flat.

    python -m tests.faults.reloads [--model model.onnx] [--reloads 200] [--callers 4]

The model is published as versions in turn, the one before is deleted, and each is called as soon
as it is there. Prints the resident memory of the server every 20 reloads, calls, failures, and the
latency while a version is loading beside that in quiet. Without --model: the tiny one of the tests.
"""

import argparse
import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from serving.client import AsyncClient
from tests.conftest import start_server
from tests.faults.process import resident_mib
from tests.faults.script import conclude
from tests.photos import jpeg
from tests.tiny import build_version

NAME = "pets"
POLL_S = 0.1
# The first reloads fill allocators and caches; memory is flat if it stays within this after them.
SETTLED_AFTER = 40
WINDOW = 60  # samples at either end: each may hold the version that is just going
ALLOWED_GROWTH = 0.05


def publisher(root: Path, model: Path | None) -> Callable[[int], int]:
    """seed -> the number of a newly published version."""
    if model is None:
        return lambda seed: build_version(root, NAME, seed=seed)
    data = model.read_bytes()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[1]
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    probabilities, logits = session.run(("probabilities", "logits"), {"image": images})
    golden = {"images": images, "probabilities": probabilities, "logits": logits}
    labels = [f"label-{index}" for index in range(logits.shape[1])]
    return lambda seed: build_version(root, NAME, labels, side, model=data, golden=golden)


class Callers:
    def __init__(self, client: AsyncClient, count: int) -> None:
        self.failed = 0
        self.answers: list[tuple[float, float, int]] = []  # start, seconds, version
        self._client = client
        self._tasks = [asyncio.create_task(self._call()) for _ in range(count)]

    async def _call(self) -> None:
        photo = jpeg()
        while True:
            start = time.monotonic()
            try:
                response = await self._client.classify([photo], model=NAME)
            except Exception as error:
                self.failed += 1
                print(f"a call failed: {error}", flush=True)
            else:
                self.answers.append((start, time.monotonic() - start, response.version))

    async def answered_by(self, version: int) -> None:
        while not self.answers or self.answers[-1][2] != version:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def latencies(self, spans: list[tuple[float, float]], *, within: bool) -> np.ndarray:
        """Milliseconds of the calls that did, or did not, overlap one of the spans."""
        starts = np.array([start for start, _, _ in self.answers])
        seconds = np.array([seconds for _, seconds, _ in self.answers])
        overlap = np.zeros(len(starts), bool)
        for begin, end in spans:
            overlap |= (starts < end) & (starts + seconds > begin)
        return 1e3 * seconds[overlap if within else ~overlap]


async def run(options: argparse.Namespace, folder: Path) -> bool:
    root = folder / "models"
    publish = publisher(root, options.model)
    version = publish(0)
    server = start_server(root, folder, "--poll-s", str(POLL_S))
    memory: list[float] = []
    spans: list[tuple[float, float]] = []
    async with AsyncClient(server.address) as client:
        callers = Callers(client, options.callers)
        await callers.answered_by(version)
        await asyncio.sleep(3)
        for reload in range(1, options.reloads + 1):
            before, begin = version, time.monotonic()
            version = await asyncio.to_thread(publish, reload)
            await callers.answered_by(version)
            spans.append((begin, time.monotonic()))
            await asyncio.to_thread(shutil.rmtree, root / NAME / str(before))
            memory.append(resident_mib(server.process.pid))
            if reload % 20 == 0 or reload == options.reloads:
                print(f"{reload:4d} reloads: {memory[-1]:7.1f} MiB resident", flush=True)
        await asyncio.sleep(3)
        await callers.stop()
    status, _, _ = server.stop()
    for words, within in (("while a version is loading", True), ("in quiet", False)):
        found = callers.latencies(spans, within=within)
        middle, late, worst = np.percentile(found, (50, 99, 100))
        print(
            f"{words}: {len(found)} calls, p50 {middle:.1f} ms, p99 {late:.1f} ms, "
            f"longest {worst:.1f} ms"
        )
    lasted = [end - begin for begin, end in spans]
    print(f"from publishing to the first answer: median {np.median(lasted):.2f} s")
    print(f"failed calls: {callers.failed}")
    if len(memory) <= SETTLED_AFTER:
        return callers.failed == 0 and status == 0
    first, end = memory[SETTLED_AFTER:][:WINDOW], memory[-WINDOW:]
    settled, last = float(np.median(first)), float(np.median(end))
    print(f"memory: {settled:.1f} MiB after {SETTLED_AFTER} reloads, {last:.1f} MiB at the end")
    return callers.failed == 0 and status == 0 and last <= settled * (1 + ALLOWED_GROWTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="an ONNX file of our contract")
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--callers", type=int, default=4)
    options = parser.parse_args()
    conclude(lambda folder: run(options, folder))


if __name__ == "__main__":
    main()
