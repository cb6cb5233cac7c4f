"""Calls a server with NVIDIA's tritonclient, in an environment that has it; prints JSON.

    python triton_calls.py ADDRESS FOLDER

FOLDER holds photos 0.jpg, 1.jpg, ... and their pixels, pixels.npy: uint8 [n, S, S, 3].
"""

import asyncio
import json
import queue
import sys
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException


def tensor(array: np.ndarray) -> triton.InferInput:
    kind = "BYTES" if array.dtype == np.object_ else "UINT8"
    given = triton.InferInput("image", array.shape, kind)
    given.set_data_from_numpy(array)
    return given


def outputs(result: triton.InferResult) -> dict[str, list]:
    return {name: result.as_numpy(name).tolist() for name in ("probabilities", "logits")}


def error(call) -> list[str]:
    try:
        call()
    except InferenceServerException as failed:
        return [failed.status(), failed.message()]
    return ["none", ""]


async def with_aio(address: str, photos: np.ndarray) -> dict[str, list]:
    async with triton_aio.InferenceServerClient(address) as client:
        return outputs(await client.infer("pets", [tensor(photos)]))


def main(address: str, folder: Path) -> None:
    paths = sorted(folder.glob("*.jpg"))
    photos = np.array([path.read_bytes() for path in paths], np.object_)
    pixels = np.load(folder / "pixels.npy")
    client = triton.InferenceServerClient(address)
    best = triton.InferRequestedOutput("probabilities", class_count=2)
    answered: queue.SimpleQueue = queue.SimpleQueue()
    client.async_infer("pets", [tensor(photos)], lambda result, error: answered.put(result))
    report = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("pets"),
        "other_ready": client.is_model_ready("cars"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata("pets", as_json=True),
        "config": client.get_model_config("pets", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "photos": outputs(client.infer("pets", [tensor(photos)], model_version="1")),
        "column": outputs(client.infer("pets", [tensor(photos[:, None])])),
        "pixels": outputs(client.infer("pets", [tensor(pixels)], request_id="7")),
        "id": client.infer("pets", [tensor(pixels)], request_id="7").get_response().id,
        "async": outputs(answered.get(timeout=20)),
        "aio": asyncio.run(with_aio(address, photos)),
        "classes": client.infer("pets", [tensor(photos)], outputs=[best])
        .as_numpy("probabilities")
        .astype(str)
        .tolist(),
        "no_model": error(partial(client.infer, "cars", [tensor(photos)])),
        "bad_photo": error(
            partial(client.infer, "pets", [tensor(np.array([photos[0], b"junk"], np.object_))])
        ),
        "bad_shape": error(partial(client.infer, "pets", [tensor(pixels[:, 1:])])),
        "late": error(partial(client.infer, "pets", [tensor(photos)], timeout=1)),
    }
    client.start_stream(lambda result, error: answered.put(result or error))
    for index in range(3):
        client.async_stream_infer(
            "pets", [tensor(photos[index : index + 1])], request_id=str(index)
        )
    streamed = [answered.get(timeout=20) for _ in range(3)]
    client.async_stream_infer("cars", [tensor(photos)])
    report["stream"] = {one.get_response().id: outputs(one) for one in streamed}
    report["stream_error"] = answered.get(timeout=20).message()
    client.stop_stream()
    report["statistics"] = client.get_inference_statistics("pets", as_json=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
