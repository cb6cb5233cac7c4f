"""Callers over HTTP, for LitServe; otherwise as triton_load.py. Started by server.py."""

import argparse
import base64
import json
from pathlib import Path

import aiohttp
import uvloop
from callers import measured, until_ready


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("photos", type=Path, help="files named in lines")
    parser.add_argument("callers", type=int)
    options = parser.parse_args()
    files = options.photos.read_text().splitlines()
    bodies = [{"image": base64.b64encode(Path(file).read_bytes()).decode()} for file in files]
    connector = aiohttp.TCPConnector(limit=options.callers)
    async with aiohttp.ClientSession(f"http://{options.address}", connector=connector) as session:

        async def ready() -> bool:
            try:
                async with session.get("/health") as answer:
                    return answer.ok
            except aiohttp.ClientError:
                return False  # not listening yet

        async def ask(body: dict[str, str]) -> None:
            async with session.post(f"/{options.model}", json=body) as answer:
                answer.raise_for_status()
                assert (await answer.json())["probabilities"]

        await until_ready(ready)
        print(json.dumps(await measured(ask, bodies, options.callers)))


uvloop.run(main())
