"""Holds a served version's real engine, so that calls wait in its queue as long as needed."""

import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np

from serving.catalogue import ServedVersion
from serving.server import Server

WITHIN_S = 20.0


class HeldModel:
    """From now on every batch waits until `release`; `batches` are their sizes, `pictures` what was
    in them.
    """

    def __init__(self, server: Server, name: str = "pets", version: int = 1) -> None:
        assert server.catalogue is not None
        self._served: ServedVersion = server.catalogue.models[name].versions[version]
        self._gate = threading.Event()
        self.pictures: list[np.ndarray] = []
        self._served.batcher._run_model = self._run

    @property
    def batches(self) -> list[int]:
        return [len(images) for images in self.pictures]

    def _run(self, images: np.ndarray, alone: bool) -> tuple[np.ndarray, ...]:
        self.pictures.append(images)
        assert self._gate.wait(WITHIN_S)
        return self._served.engine.run(images, alone=alone)

    def release(self) -> None:
        self._gate.set()

    async def waiting(self, photos: int) -> None:
        """Until so many photos are in the queue."""
        await until(lambda: self._served.batcher.waiting == photos)

    async def admitted(self, photos: int) -> None:
        """Until so many photos are admitted and not yet answered."""
        await until(lambda: self._served.batcher.admitted == photos)

    async def running(self, batches: int) -> None:
        """Until so many batches have begun."""
        await until(lambda: len(self.batches) == batches)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)
