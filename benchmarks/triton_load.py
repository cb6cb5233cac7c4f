"""Callers with NVIDIA's tritonclient, in an environment that has it. Started by server.py.

Asks for `count` photos with so many calls under way, and prints photos a second, p50 and p99.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

WARM = 32


async def ready(client: triton.InferenceServerClient, model: str) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            if await client.is_model_ready(model):
                return
        except InferenceServerException:
            pass  # not listening yet
        if time.monotonic() > until:
            raise TimeoutError(f"{model} is not ready")
        await asyncio.sleep(0.2)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("photos", type=Path, help="files named in lines, or pixels as .npy")
    parser.add_argument("callers", type=int)
    parser.add_argument("--column", action="store_true", help="photos as [1, 1], as Triton has it")
    options = parser.parse_args()
    if options.photos.suffix == ".npy":
        datatype, contents = "UINT8", list(np.load(options.photos)[:, None])
    else:
        files = options.photos.read_text().splitlines()
        photos = [Path(file).read_bytes() for file in files]
        shape = (1, 1) if options.column else (1,)
        datatype, contents = "BYTES", [np.full(shape, photo, object) for photo in photos]
    outputs = [triton.InferRequestedOutput("probabilities")]
    taken: list[float] = []
    async with triton.InferenceServerClient(options.address) as client:
        await ready(client, options.model)

        async def ask(content: np.ndarray) -> None:
            image = triton.InferInput("image", list(content.shape), datatype)
            image.set_data_from_numpy(content)
            begin = time.perf_counter()
            result = await client.infer(options.model, [image], outputs=outputs)
            taken.append(time.perf_counter() - begin)
            assert result.as_numpy("probabilities").shape[0] == 1

        async def all_of(some: list[np.ndarray]) -> float:
            waiting = iter(some)

            async def caller() -> None:
                for content in waiting:
                    await ask(content)

            begin = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(options.callers)))
            return time.perf_counter() - begin

        await all_of(contents[:WARM])
        taken.clear()
        seconds = await all_of(contents)
    p50, p99 = (1e3 * float(np.quantile(taken, q)) for q in (0.5, 0.99))
    print(json.dumps({"photos_s": len(contents) / seconds, "p50_ms": p50, "p99_ms": p99}))


asyncio.run(main())
