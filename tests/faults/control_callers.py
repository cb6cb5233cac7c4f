"""Callers of a server whose versions change, and a judge of what they get: for model_control.py."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import grpc

from protos.inference import grpc_service_pb2 as inference_pb
from protos.inference import grpc_service_pb2_grpc
from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from tests.faults.control_repository import SIZE
from tests.faults.control_rules import ALIASES, NAMES, Outcome, World
from tests.photos import jpeg

KEYS = [f"key-{index}" for index in range(8)]
PAUSE_S = 0.004  # a caller's, so that the server has time for all else


@dataclass
class Epoch:
    """A time in which nothing changes, or in which an operation is under way."""

    number: int
    worlds: list[World] = field(default_factory=list)  # that may be seen; none: not yet known


@dataclass
class Made:
    """A call that has ended, and what it was."""

    name: str
    reference: str
    key: str | None
    first: int
    last: int
    outcome: Outcome
    how: str
    said: str = ""


class Journal:
    """Judges calls by what the rules allow for their time."""

    def __init__(self) -> None:
        self.epochs = [Epoch(0)]
        self.waiting: list[Made] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._bounds: dict[tuple[str, str], tuple[float, float]] = {}

    @property
    def now(self) -> int:
        return self.epochs[-1].number

    def begin(self, worlds: list[World] | None = None) -> None:
        self.epochs.append(Epoch(self.now + 1, worlds or []))

    def judge(self) -> None:
        waiting, self.waiting = self.waiting, []
        for made in waiting:
            epochs = self.epochs[made.first : made.last + 1]
            if not all(epoch.worlds for epoch in epochs):
                self.waiting.append(made)
                continue
            worlds = [world for epoch in epochs for world in epoch.worlds]
            allowed = set().union(
                *(w.outcomes(made.name, made.reference, made.key) for w in worlds)
            )
            self.counts[made.outcome[0]] += 1
            if made.outcome not in allowed:
                self.faults.append(
                    f"{made.how} of {made.name}/{made.reference or '-'} had {made.outcome} "
                    f"({made.said}) where {sorted(allowed)} was due, in {made.first} to {made.last}"
                )
            self._sticks(made, worlds)

    def _sticks(self, made: Made, worlds: list[World]) -> None:
        """A key is of a canary's share, or not, whatever the version; and of every larger share."""
        if not made.key or made.reference or made.outcome[0] != "OK":
            return
        found = {(*w.split("canary", made.name), w.models[made.name].default) for w in worlds}
        canary, share, default = next(iter(found))
        if len(found) > 1 or canary == default or made.outcome[1] not in (canary, default):
            return
        if not all(canary in w.models[made.name].served for w in worlds):
            return
        above, below = self._bounds.get((made.name, made.key), (0.0, 2.0))
        if made.outcome[1] == canary:
            below = min(below, share)
        else:
            above = max(above, share)
        self._bounds[made.name, made.key] = above, below
        if above >= below:
            self.faults.append(f"{made.key} of {made.name} was of {below} and not of {above}")


class Callers:
    def __init__(self, address: str, journal: Journal, seed: int) -> None:
        self._channel = grpc.aio.insecure_channel(
            address, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        self._journal = journal
        self._chance = random.Random(seed)
        self._photo = jpeg(40, 40)
        self._pixels = bytes(SIZE * SIZE * 3)
        self.ended = asyncio.Event()
        kinds = (self._classify, self._classify, self._infer, self._stream)
        self._tasks = [asyncio.create_task(kind()) for kind in kinds]

    async def stop(self) -> None:
        self.ended.set()
        await asyncio.gather(*self._tasks)
        await self._channel.close()

    def _choose(self) -> tuple[str, str, str]:
        chance = self._chance
        versions = [str(number) for number in range(1, 9)]
        reference = chance.choice([*[""] * 8, *ALIASES, *ALIASES, *versions])
        return chance.choice(NAMES), reference, chance.choice(["", *KEYS])

    def _message(self, name: str, reference: str, key: str) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(
            model=name, version=reference, routing_key=key, images=[self._photo]
        )

    async def _classify(self) -> None:
        stub = classifier_pb2_grpc.ClassifierServiceStub(self._channel)
        while not self.ended.is_set():
            await self._ended(stub.Classify, self._message, *self._choose(), "Classify")

    async def _infer(self) -> None:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

        def message(name: str, reference: str, key: str) -> inference_pb.ModelInferRequest:
            asked = inference_pb.ModelInferRequest(model_name=name, model_version=reference)
            asked.parameters["routing_key"].string_param = key
            asked.inputs.add(name="image", datatype="UINT8", shape=(1, SIZE, SIZE, 3))
            asked.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
            asked.raw_input_contents.append(self._pixels)
            return asked

        while not self.ended.is_set():
            await self._ended(stub.ModelInfer, message, *self._choose(), "ModelInfer")

    async def _ended(
        self, method: object, message: object, name: str, reference: str, key: str, how: str
    ) -> None:
        first, said = self._journal.now, ""
        try:
            answer = await method(message(name, reference, key), timeout=30)
            outcome = answered(answer)
        except grpc.aio.AioRpcError as error:
            outcome, said = (error.code().name, 0, 0), error.details() or ""
            if self.ended.is_set():
                return
        self._journal.waiting.append(
            Made(name, reference, key, first, self._journal.now, outcome, how, said)
        )
        await asyncio.sleep(PAUSE_S)

    async def _stream(self) -> None:
        stub = classifier_pb2_grpc.ClassifierServiceStub(self._channel)
        while not self.ended.is_set():
            call = stub.ClassifyStream()
            try:
                for _ in range(30):
                    asked = {}
                    for number in range(3):
                        asked[number] = (*self._choose(), self._journal.now)
                        message = self._message(*asked[number][:3])
                        await call.write(
                            pb.ClassifyStreamRequest(request_id=number, request=message)
                        )
                    while asked:
                        answer = await call.read()
                        if answer is grpc.aio.EOF:
                            break
                        name, reference, key, first = asked.pop(answer.request_id)
                        code, said = "", ""
                        if answer.WhichOneof("outcome") == "error":
                            code = grpc_name(answer.error.code)
                            said = answer.error.message
                        outcome = (code, 0, 0) if code else answered(answer.response)
                        last = self._journal.now
                        made = Made(name, reference, key, first, last, outcome, "a stream", said)
                        self._journal.waiting.append(made)
                    await asyncio.sleep(PAUSE_S)
                    if asked or self.ended.is_set():
                        break
                if asked and not self.ended.is_set():
                    self._journal.faults.append(f"a stream ended before its answers: {asked}")
                await call.done_writing()
                await call.code()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                if not self.ended.is_set():
                    self._journal.faults.append(f"a stream failed: {error!r}")


def grpc_name(number: int) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def answered(answer: pb.ClassifyResponse | inference_pb.ModelInferResponse) -> Outcome:
    if isinstance(answer, pb.ClassifyResponse):
        label = answer.results[0].classification.labels[0].name
        return "OK", answer.version, int(label.partition("-")[2])
    label = answer.raw_output_contents[0][4:].decode().split(":")[2]
    return "OK", int(answer.model_version), int(label.partition("-")[2])
