"""Callers with NVIDIA's tritonclient, in an environment that has it. Started by server.py.

Asks for `count` photos with so many calls under way, and prints photos a second, p50 and p99.
"""

import argparse
import asyncio
import json
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton
from callers import measured, until_ready
from tritonclient.utils import InferenceServerException


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
    async with triton.InferenceServerClient(options.address) as client:

        async def ready() -> bool:
            try:
                return bool(await client.is_model_ready(options.model))
            except InferenceServerException:
                return False  # not listening yet

        async def ask(content: np.ndarray) -> None:
            image = triton.InferInput("image", list(content.shape), datatype)
            image.set_data_from_numpy(content)
            result = await client.infer(options.model, [image], outputs=outputs)
            assert result.as_numpy("probabilities").shape[0] == 1

        await until_ready(ready)
        print(json.dumps(await measured(ask, contents, options.callers)))


asyncio.run(main())
