"""Half of the callers leave at random, under load; the others must all have right answers.

python -m tests.faults.cancelled [--calls 5000] [--seed 0]
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np

from protos.pawprint.v1 import classifier_pb2_grpc
from tests.faults.script import conclude, stopped_clean, tiny_server
from tests.photos import jpeg
from tests.serving.test_service import check, request

AT_ONCE = 64


async def cancelled(folder: Path, calls: int, seed: int) -> bool:
    with tiny_server(folder) as server:
        chance, photos = random.Random(seed), [jpeg(seed=number) for number in range(32)]
        outcomes: Counter[str] = Counter()
        taken: list[float] = []
        wrong: list[str] = []

        async def one(stub: classifier_pb2_grpc.ClassifierServiceStub) -> None:
            chosen = chance.sample(photos, chance.randint(1, 3))
            begin = time.monotonic()
            call = stub.Classify(request(*chosen), timeout=60)
            leaving = chance.random() < 0.5
            if leaving:
                # About as long as a call takes: some leave before decoding, some in a running batch
                wait_s = chance.uniform(0, np.median(taken[-100:]) if taken else 0.01)
                await asyncio.wait({asyncio.ensure_future(_ended(call))}, timeout=wait_s)
                if call.cancel():
                    outcomes["left"] += 1
                    return
            try:
                answer = await call
                for result, photo in zip(answer.results, chosen, strict=True):
                    check(result, photo)
            except (AssertionError, ValueError, grpc.aio.AioRpcError) as error:
                wrong.append(repr(error))
                return
            taken.append(time.monotonic() - begin)
            outcomes["answered before they could leave" if leaving else "stayed and answered"] += 1

        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            numbers = iter(range(calls))

            async def caller() -> None:
                for _ in numbers:
                    await one(stub)

            begin = time.monotonic()
            await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
            seconds = time.monotonic() - begin
        middle, late = 1e3 * np.quantile(taken, (0.5, 0.99))
        print(f"{calls} calls by {AT_ONCE} callers in {seconds:.1f} s: {dict(outcomes)}")
        print(
            f"of the answered: p50 {middle:.0f} ms, p99 {late:.0f} ms; "
            f"wrong or failed: {len(wrong)}"
        )
        for fault in wrong[:10]:
            print(f"  {fault}")
        return all([not wrong, outcomes["left"] > calls / 10, stopped_clean(server)])


async def _ended(call: grpc.aio.UnaryUnaryCall) -> None:
    await call.code()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    conclude(lambda folder: cancelled(folder, options.calls, options.seed))


if __name__ == "__main__":
    main()
