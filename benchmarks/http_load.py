"""Callers over HTTP, for LitServe; otherwise as triton_load.py. Started by server.py."""

import argparse
import asyncio
import base64
import json
import time
from pathlib import Path

import aiohttp
import numpy as np
import uvloop

WARM = 32
READY_S = 120


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("photos", type=Path, help="files named in lines")
    parser.add_argument("callers", type=int)
    options = parser.parse_args()
    files = options.photos.read_text().splitlines()
    bodies = [{"image": base64.b64encode(Path(file).read_bytes()).decode()} for file in files]
    taken: list[float] = []
    connector = aiohttp.TCPConnector(limit=options.callers)
    async with aiohttp.ClientSession(f"http://{options.address}", connector=connector) as session:
        until = time.monotonic() + READY_S
        while True:
            try:
                async with session.get("/health") as answer:
                    if answer.ok:
                        break
            except aiohttp.ClientError:
                pass  # not listening yet
            if time.monotonic() > until:
                raise TimeoutError("not ready")
            await asyncio.sleep(0.2)

        async def all_of(some: list[dict[str, str]]) -> float:
            waiting = iter(some)

            async def caller() -> None:
                for body in waiting:
                    begin = time.perf_counter()
                    async with session.post(f"/{options.model}", json=body) as answer:
                        answer.raise_for_status()
                        assert (await answer.json())["probabilities"]
                    taken.append(time.perf_counter() - begin)

            begin = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(options.callers)))
            return time.perf_counter() - begin

        await all_of(bodies[:WARM])
        taken.clear()
        seconds = await all_of(bodies)
    p50, p99 = (1e3 * float(np.quantile(taken, q)) for q in (0.5, 0.99))
    print(json.dumps({"photos_s": len(bodies) / seconds, "p50_ms": p50, "p99_ms": p99}))


uvloop.run(main())
