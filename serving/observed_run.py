"""An engine's `run` that tells of each batch, and says when the engine seems to be broken."""

import time
from collections.abc import Callable

from serving.engine import Engine
from serving.golden import Floats, Images

OnBatch = Callable[[str, int, int, float], None]  # model, version, photos, seconds

# One failure may be the input's or the moment's; so many without a success in between are not.
FAILURES_IN_A_ROW = 3


class ObservedRun:
    """Called by the inference threads, as are `on_batch` and `on_broken`."""

    def __init__(self, engine: Engine, on_batch: OnBatch, on_broken: Callable[[], None]) -> None:
        self._run = engine.run
        self._name, self._version = engine.manifest.name, engine.manifest.version
        self._on_batch = on_batch
        self._on_broken = on_broken
        self._failures = 0

    def __call__(self, images: Images, alone: bool) -> tuple[Floats, ...]:
        start = time.monotonic()
        try:
            outputs = self._run(images, alone=alone)
        except Exception:
            self._failures += 1
            if self._failures == FAILURES_IN_A_ROW:
                self._on_broken()
            raise
        self._failures = 0
        self._on_batch(self._name, self._version, len(images), time.monotonic() - start)
        return outputs
