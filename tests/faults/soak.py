"""Mixed calls at a modest rate for minutes: memory and descriptors flat, each answered once.

    python -m tests.faults.soak [--minutes 10] [--rate 20]

The calls: one photo, several of which one is bad, pixels over the Open Inference Protocol, streams,
wrong calls, calls cancelled at any moment, and connections that come and go. Every answer is
compared with numpy's, its id with that of its request; at the end the server's own counts must be
those of the callers.
"""

import argparse
import asyncio
import itertools
import random
import time
import urllib.request
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from protos.inference import grpc_service_pb2, grpc_service_pb2_grpc
from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from tests.conftest import ServerProcess
from tests.faults.process import cpu_s, descriptors, resident_mib
from tests.faults.script import conclude, stopped_clean, tiny_server
from tests.photos import jpeg
from tests.ports import free_port
from tests.serving.test_service import check, request
from tests.tiny import logits_of

REQUEST_ID = "x-request-id"
CALLERS = 4
STREAMED = 8
SAMPLES = 120
# Of the settled part, between its beginning and its end.
ALLOWED_GROWTH, ALLOWED_DESCRIPTORS = 0.03, 4


class Callers:
    def __init__(self, address: str, rate: float) -> None:
        self._address = address
        self._pause_s = CALLERS / rate
        self._ids = itertools.count(1)
        self._photos = [jpeg(seed=seed) for seed in range(16)]
        self.answered: Counter[tuple[str, str]] = Counter()  # by method and code
        self.cancelled = 0
        self.faults: list[str] = []

    async def run(self, seed: int, until: float) -> None:
        """One caller, which opens a new connection every 50 calls."""
        chance = random.Random(seed)
        kinds = [self.one, self.several, self.pixels, self.stream, self.wrong, self.leave]
        options = [("grpc.use_local_subchannel_pool", 1)]
        while time.monotonic() < until:
            async with grpc.aio.insecure_channel(self._address, options) as channel:
                for _ in range(50):
                    kind = chance.choices(kinds, (6, 2, 3, 1, 1, 2))[0]
                    try:
                        await kind(channel, chance)
                    except (AssertionError, grpc.aio.AioRpcError) as error:
                        self.faults.append(f"{kind.__name__}: {error!r}")
                    await asyncio.sleep(chance.uniform(0.5, 1.5) * self._pause_s)
                    if time.monotonic() >= until:
                        break

    async def _answer(self, method: object, message: object, name: str) -> object:
        """The answer of a call whose id comes back with it."""
        number = str(next(self._ids))
        call = method(message, metadata=((REQUEST_ID, number),), timeout=30)  # type: ignore[operator]
        answer = await call
        returned = [value for key, value in await call.trailing_metadata() if key == REQUEST_ID]
        assert returned == [number], f"request {number} came back as {returned}"
        self.answered[name, "OK"] += 1
        return answer

    async def one(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        photo = chance.choice(self._photos)
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        answer = await self._answer(stub.Classify, request(photo), "Classify")
        check(answer.results[0], photo)

    async def several(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        first, second = chance.sample(self._photos, 2)
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        message = request(first, b"no photo", second, priority=pb.PRIORITY_LOW)
        answer = await self._answer(stub.Classify, message, "Classify")
        check(answer.results[0], first)
        assert answer.results[1].error.message
        check(answer.results[2], second)

    async def pixels(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        images = np.frombuffer(chance.randbytes(2 * 32 * 32 * 3), np.uint8).reshape(2, 32, 32, 3)
        number = str(next(self._ids))
        message = grpc_service_pb2.ModelInferRequest(model_name="pets", id=number)
        message.inputs.add(name="image", datatype="UINT8", shape=images.shape)
        message.raw_input_contents.append(images.tobytes())
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = await self._answer(stub.ModelInfer, message, "ModelInfer")
        assert answer.id == number, f"answer {answer.id} to request {number}"
        logits = np.frombuffer(answer.raw_output_contents[1], "<f4").reshape(2, 2)
        np.testing.assert_allclose(logits, logits_of(images), atol=1e-4)

    async def stream(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        photos = {next(self._ids): chance.choice(self._photos) for _ in range(STREAMED)}
        call = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream()
        for number, photo in photos.items():
            message = pb.ClassifyStreamRequest(request_id=number, request=request(photo))
            await call.write(message)
        await call.done_writing()
        async for answer in call:
            photo = photos.pop(answer.request_id, None)
            assert photo is not None, f"{answer.request_id} was answered twice, or never asked"
            check(answer.response.results[0], photo)
            self.answered["ClassifyStream", "OK"] += 1
        assert not photos, f"without an answer: {[*photos]}"

    async def wrong(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        message, code = chance.choice(
            [
                (request(self._photos[0], model="cars"), grpc.StatusCode.NOT_FOUND),
                (request(b"no photo"), grpc.StatusCode.INVALID_ARGUMENT),
            ]
        )
        try:
            await classifier_pb2_grpc.ClassifierServiceStub(channel).Classify(message)
        except grpc.aio.AioRpcError as error:
            assert error.code() is code, f"{error.code()} where {code} was due"
            self.answered["Classify", code.name] += 1
        else:
            raise AssertionError("a wrong call was answered")

    async def leave(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        call = classifier_pb2_grpc.ClassifierServiceStub(channel).Classify(
            request(*self._photos[:4])
        )
        await asyncio.sleep(chance.uniform(0, 0.01))
        call.cancel()
        self.cancelled += 1


def counted(metrics_port: int) -> Counter[tuple[str, str]]:
    """The server's own counts by method and code."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "pawprint_calls_total":
                found[sample.labels["method"], sample.labels["code"]] += int(sample.value)
    return found


def agree(server: Counter[tuple[str, str]], callers: Callers) -> bool:
    """A call that its caller left counts as CANCELLED or OK there, or has never arrived."""
    left = Counter(server)
    left.subtract(callers.answered)
    cancelled = left.pop(("Classify", "CANCELLED"), 0) + left.pop(("Classify", "OK"), 0)
    print(f"the server counts {dict(server)}")
    print(f"the callers count {dict(callers.answered)}, and {callers.cancelled} that they left")
    return 0 <= cancelled <= callers.cancelled and not any(left.values())


async def watched(server: ServerProcess, seconds: float, every_s: float) -> np.ndarray:
    """[n, 2]: MiB resident and descriptors, every so many seconds."""
    pid, begin, samples = server.process.pid, time.monotonic(), []
    while (passed := time.monotonic() - begin) < seconds:
        await asyncio.sleep(every_s)
        samples.append((resident_mib(pid), descriptors(pid)))
        if int(passed / 60) != int((passed + every_s) / 60) or len(samples) == 1:
            memory, files = samples[-1]
            print(
                f"{passed + every_s:4.0f} s: {memory:6.1f} MiB resident, {files} descriptors, "
                f"{cpu_s(pid):.1f} s of processor time",
                flush=True,
            )
    return np.array(samples)


def is_flat(samples: np.ndarray) -> bool:
    """Between the second fifth (caches are full by then) and the last."""
    fifth = len(samples) // 5
    (memory, files), (memory_end, files_end) = (
        np.median(samples[fifth : 2 * fifth], axis=0),
        np.median(samples[-fifth:], axis=0),
    )
    print(
        f"second fifth: {memory:.1f} MiB, {files:.0f} descriptors; "
        f"last fifth: {memory_end:.1f} MiB, {files_end:.0f} descriptors"
    )
    return bool(
        memory_end <= memory * (1 + ALLOWED_GROWTH) and files_end <= files + ALLOWED_DESCRIPTORS
    )


async def soak(folder: Path, seconds: float, rate: float) -> bool:
    port = free_port()
    with tiny_server(folder, "--metrics-port", str(port)) as server:
        callers = Callers(server.address, rate)
        until = time.monotonic() + seconds
        calling = [asyncio.create_task(callers.run(seed, until)) for seed in range(CALLERS)]
        samples = await watched(server, seconds, seconds / SAMPLES)
        await asyncio.gather(*calling)
        await asyncio.sleep(1)  # until the calls that were left have ended there
        same = agree(await asyncio.to_thread(counted, port), callers)
        print(f"{len(callers.faults)} faults {callers.faults[:5]}")
        return all([is_flat(samples), same, not callers.faults, stopped_clean(server)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=20, help="calls a second (%(default)s)")
    options = parser.parse_args()
    conclude(lambda folder: soak(folder, 60 * options.minutes, options.rate))


if __name__ == "__main__":
    main()
