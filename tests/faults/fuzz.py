"""Broken photos and messages by the thousand: each is answered, or refused as the caller's mistake.

    python -m tests.faults.fuzz [--photos 10000] [--messages 10000] [--seed 0]

Photos go through the preprocessing here and then through a real server, whose answer must be
numpy's where the photo can be read, and INVALID_ARGUMENT where not. Messages, broken as bytes and
field by field, go to every method of both services. So do messages that are swollen in one field,
one after the other: what each costs the server in time and memory has a limit.
"""

import argparse
import asyncio
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np

from protos.inference import grpc_service_pb2 as inference
from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.errors import InvalidImage
from serving.modelspec import Preprocessing
from serving.photo_formats import readable
from serving.preprocess import preprocess
from tests.conftest import ServerProcess
from tests.faults.mutations import broken, photos, scrambled, swollen
from tests.faults.process import MIB, cpu_s, forget_peak, peak_mib, resident_mib
from tests.faults.script import conclude, stopped_clean, tiny_server
from tests.photos import jpeg
from tests.serving.test_service import check, request
from tests.tiny import logits_of, softmax

Code = grpc.StatusCode
SPEC = Preprocessing(size=32, interpolation="bilinear")
MAX_PIXELS = 4_000_000  # as --max-megapixels below: what a broken header asks for stays small
AT_ONCE = 16
# What a broken message may be answered with. Never INTERNAL or UNKNOWN: those are defects of ours.
ALLOWED = {
    *(Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED),
    Code.DEADLINE_EXCEEDED,  # of a request's own timeout
}
LONGEST_S = 10.0  # an answer, with AT_ONCE calls at a time on a busy machine
# What swollen messages may cost the server: processor time of one, and memory of them all, of which
# the allocator keeps some.
SWOLLEN_BYTES = (60 * 1024, 4 * MIB)
SWOLLEN_CPU_S, SWOLLEN_MIB = 0.4, 128.0
CLASSIFIER, INFERENCE = "pawprint.v1.ClassifierService", "inference.GRPCInferenceService"


def mutated_photos(count: int, seed: int) -> Iterator[bytes]:
    generator, sound = np.random.default_rng(seed), photos()
    for _ in range(count):
        yield broken(sound[generator.integers(len(sound))], sound, generator)


def read(data: bytes) -> np.ndarray | str:
    """Its pixels, or why it can't be read. Raises whatever is no InvalidImage: a defect."""
    try:
        pixels = preprocess(data, SPEC, max_pixels=MAX_PIXELS)
    except InvalidImage as error:
        assert str(error), "an error must say something"
        return str(error)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    return pixels


def read_all(data: list[bytes]) -> list[np.ndarray | str]:
    longest, found = 0.0, []
    for photo in data:
        begin = time.perf_counter()
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of what it found odd
            found.append(read(photo))
        longest = max(longest, time.perf_counter() - begin)
    sound = sum(isinstance(pixels, np.ndarray) for pixels in found)
    print(
        f"{len(found)} photos: {sound} can be read all the same, {len(found) - sound} are refused; "
        f"longest {1e3 * longest:.0f} ms"
    )
    return found


def seeds() -> dict[tuple[str, bool], list[bytes]]:
    """Sound messages by method, and whether it is a stream: what is broken begins as these."""
    classify = request(jpeg(), jpeg(seed=1), top_k=2, version="1", routing_key="k")
    infer = inference.ModelInferRequest(model_name="pets", model_version="1", id="7")
    infer.parameters["timeout"].int64_param = 5_000_000
    infer.parameters["priority"].uint64_param = 2
    tensor = infer.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(jpeg())
    infer.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    pixels = inference.ModelInferRequest(model_name="pets")
    pixels.inputs.add(name="image", datatype="UINT8", shape=[1, 32, 32, 3])
    pixels.raw_input_contents.append(bytes(32 * 32 * 3))
    raw = inference.ModelInferRequest(model_name="pets")
    raw.inputs.add(name="image", datatype="BYTES", shape=[1])
    raw.raw_input_contents.append(struct.pack("<I", len(jpeg())) + jpeg())
    typed = inference.ModelInferRequest(model_name="pets")
    tensor = typed.inputs.add(name="image", datatype="UINT8", shape=[1, 32, 32, 3])
    tensor.contents.uint_contents.extend([7] * (32 * 32 * 3))
    infers = [infer, pixels, raw, typed]
    streamed = pb.ClassifyStreamRequest(request_id=1, request=classify)
    named = {
        "ModelReady": inference.ModelReadyRequest(name="pets", version="1"),
        "ModelMetadata": inference.ModelMetadataRequest(name="pets"),
        "ModelConfig": inference.ModelConfigRequest(name="pets"),
        "ModelStatistics": inference.ModelStatisticsRequest(name="pets", version="1"),
        "RepositoryIndex": inference.RepositoryIndexRequest(),
        "ServerLive": inference.ServerLiveRequest(),
        "ServerReady": inference.ServerReadyRequest(),
        "ServerMetadata": inference.ServerMetadataRequest(),
    }
    return {
        (f"/{CLASSIFIER}/Classify", False): [classify],
        (f"/{CLASSIFIER}/GetModel", False): [pb.GetModelRequest(model="pets", version="1")],
        (f"/{CLASSIFIER}/ListModels", False): [pb.ListModelsRequest()],
        (f"/{CLASSIFIER}/ClassifyStream", True): [streamed],
        (f"/{INFERENCE}/ModelInfer", False): infers,
        (f"/{INFERENCE}/ModelStreamInfer", True): infers,
        **{(f"/{INFERENCE}/{name}", False): [message] for name, message in named.items()},
    }


def mutated_messages(count: int, seed: int) -> Iterator[tuple[str, bool, bytes]]:
    """Method, whether it is a stream, and the bytes of a message: half of them broken as bytes,
    half field by field."""
    generator, sound = np.random.default_rng(seed), seeds()
    deep = [key for key, messages in sound.items() if messages[0].ByteSize() > 100]
    others = [m.SerializeToString() for messages in sound.values() for m in messages]
    for number in range(count):
        choice = deep if number % 3 else [*sound]
        key = choice[generator.integers(len(choice))]
        message = sound[key][generator.integers(len(sound[key]))]
        if number % 2:
            yield *key, broken(message.SerializeToString(), others, generator)
        else:
            altered = type(message)()
            altered.CopyFrom(message)
            scrambled(altered, generator, share=generator.choice([0.05, 0.3, 0.8]))
            yield *key, altered.SerializeToString()


def swollen_messages() -> Iterator[tuple[str, bool, bytes]]:
    """To each method that takes one message: those of its stream are the same."""
    for (method, streams), messages in seeds().items():
        if not streams:
            for message in messages:
                for size in SWOLLEN_BYTES:
                    for data in swollen(message, size):
                        yield method, streams, data


async def each(items: Iterator[object], work: Callable[[object], object]) -> None:
    """AT_ONCE at a time."""

    async def worker() -> None:
        for item in items:
            await work(item)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


class Fuzz:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        self.codes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.longest_s = 0.0

    async def photo(self, item: tuple[bytes, np.ndarray | str]) -> None:
        """Alone: answered as numpy says, or refused for the reason found here."""
        data, pixels = item
        begin = time.monotonic()
        try:
            answer = await self._stub.Classify(request(data, top_k=2), timeout=60)
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1
            if error.code() is not Code.INVALID_ARGUMENT or isinstance(pixels, np.ndarray):
                self.faults.append(f"{error.code().name} ({error.details()}): {data[:80]!r}")
        else:
            self.codes["OK"] += 1
            if isinstance(pixels, str) or not _right(answer, pixels):
                self.faults.append(f"answered {answer.results}: {data[:80]!r}")
        self.longest_s = max(self.longest_s, time.monotonic() - begin)

    async def message(self, item: tuple[str, bool, bytes]) -> None:
        method, streams, data = item
        begin = time.monotonic()
        code = await (self._streamed(method, data) if streams else self._unary(method, data))
        self.longest_s = max(self.longest_s, time.monotonic() - begin)
        self.codes[code.name] += 1
        if code not in ALLOWED:
            self.faults.append(f"{method}: {code.name} to {data[:200]!r}")

    async def swollen(self, pid: int) -> None:
        """One after the other; none may cost much more than its bytes."""
        most_s, before = 0.0, resident_mib(pid)
        forget_peak(pid)
        for method, _, data in swollen_messages():
            used = cpu_s(pid)
            code = await self._unary(method, data)
            self.codes[code.name] += 1
            used = cpu_s(pid) - used
            most_s = max(most_s, used)
            if code not in ALLOWED - {Code.RESOURCE_EXHAUSTED} or used > SWOLLEN_CPU_S:
                self.faults.append(f"{method}: {code.name}, {used:.2f} s to {data[:200]!r}")
        growth = peak_mib(pid) - before
        if growth > SWOLLEN_MIB:
            self.faults.append(f"the server grew by {growth:.0f} MiB")
        print(f"swollen messages: {most_s:.2f} s of processor at most, {growth:.0f} MiB more")

    async def alive(self) -> None:
        photo = jpeg(seed=9)
        check((await self._stub.Classify(request(photo), timeout=60)).results[0], photo)

    async def _unary(self, method: str, data: bytes) -> Code:
        try:
            await self._channel.unary_unary(method)(data, timeout=60)
            return Code.OK
        except grpc.aio.AioRpcError as error:
            return error.code()

    async def _streamed(self, method: str, data: bytes) -> Code:
        """Also of an answer that holds an error, in a stream that goes on."""
        call = self._channel.stream_stream(method)(iter([data]), timeout=60)
        try:
            answers = [answer async for answer in call]
        except grpc.aio.AioRpcError as error:
            return error.code()
        if len(answers) != 1:
            self.faults.append(f"{method}: {len(answers)} answers to {data[:200]!r}")
        if method.endswith("/ClassifyStream"):
            number = pb.ClassifyStreamResponse.FromString(answers[0]).error.code
            return next(code for code in Code if code.value[0] == number)
        text = inference.ModelStreamInferResponse.FromString(answers[0]).error_message
        return Code.INTERNAL if "internal" in text else Code.OK


def _right(answer: pb.ClassifyResponse, pixels: np.ndarray) -> bool:
    probabilities = softmax(logits_of(pixels[None]))[0]
    labels = answer.results[0].classification.labels
    return len(labels) == 2 and all(
        abs(label.probability - probabilities[label.index]) < 1e-4 for label in labels
    )


async def fuzz(folder: Path, photo_count: int, message_count: int, seed: int) -> bool:
    data = [*mutated_photos(photo_count, seed)]
    found = read_all(data)
    limits = ("--max-megapixels", str(MAX_PIXELS // 10**6))
    kinds = ("--photo-formats", ",".join(readable()).lower())
    with tiny_server(folder, *limits, *kinds) as server:
        sound = True
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),  # a swollen id comes back with the answer
        ]
        async with grpc.aio.insecure_channel(server.address, options) as channel:
            for words, items, work in (
                ("photos", zip(data, found, strict=True), Fuzz.photo),
                ("messages", mutated_messages(message_count, seed), Fuzz.message),
            ):
                fuzz, begin = Fuzz(channel), time.monotonic()
                await each(items, lambda item, fuzz=fuzz, work=work: work(fuzz, item))
                sound &= await concluded(fuzz, server, words, begin)
            fuzz, begin = Fuzz(channel), time.monotonic()
            await fuzz.swollen(server.process.pid)
            sound &= await concluded(fuzz, server, "swollen messages", begin)
        return stopped_clean(server) and sound


async def concluded(fuzz: Fuzz, server: ServerProcess, words: str, begin: float) -> bool:
    await fuzz.alive()
    if fuzz.longest_s > LONGEST_S:
        fuzz.faults.append(f"an answer took {fuzz.longest_s:.1f} s")
    print(
        f"{words} to the server: {dict(fuzz.codes)}, {len(fuzz.faults)} faults, longest "
        f"{fuzz.longest_s:.2f} s, {time.monotonic() - begin:.0f} s in all, "
        f"{resident_mib(server.process.pid):.0f} MiB"
    )
    for fault in fuzz.faults[:20]:
        print(f"  {fault}")
    return not fuzz.faults


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    conclude(lambda folder: fuzz(folder, options.photos, options.messages, options.seed))


if __name__ == "__main__":
    main()
