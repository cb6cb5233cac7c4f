"""Which versions are loaded: chosen from the repository, proven, and put behind a batcher."""

import asyncio
import functools
import time
from collections.abc import Callable

from serving.batching import Batcher, BatchSettings, Run
from serving.catalogue import Catalogue, ServedModel, ServedVersion
from serving.engine import Engine, Floats, Images, load_engine
from serving.errors import NotFound
from serving.inference_thread import InferenceThread
from serving.loading import LoadedModel, load_model, read_robustness
from serving.repository import Repository
from serving.settings import ServerSettings

OnBatch = Callable[[str, int, int, float], None]  # model, version, photos, seconds


class ModelControl:
    """Belongs to the event loop; what it loads, it loads in other threads."""

    def __init__(
        self,
        settings: ServerSettings,
        repository: Repository,
        thread: InferenceThread,
        on_batch: OnBatch,
    ) -> None:
        """on_batch: told of each batch, in the thread that runs it."""
        self._settings = settings
        self._repository = repository
        self._thread = thread
        self._on_batch = on_batch

    async def load(self) -> Catalogue:
        """Load, prove and warm every model.

        Raises NotFound if there is no model to serve, Unavailable if the device can't be had.
        """
        names = self._repository.names()
        loop = asyncio.get_running_loop()
        models = {}
        for name in names:
            loaded = await loop.run_in_executor(None, self._load, name)
            if loaded is not None:
                models[name] = self._wire(name, loaded)
        if not models:
            found = "every version there is refused" if names else "there is none"
            raise NotFound(
                f"no model to serve in {self._settings.models}: {found}; publish one with `train`, "
                "or see `models verify`"
            )
        return Catalogue(models)

    def _load(self, name: str) -> LoadedModel | None:
        settings = self._settings
        load = functools.partial(
            load_engine,
            self._repository,
            device=settings.device,
            threads=settings.inference_threads,
            warm_sizes=warm_sizes(settings.max_batch),
        )
        return load_model(self._repository, name, load)

    def _wire(self, name: str, loaded: LoadedModel) -> ServedModel:
        settings = self._settings
        batching = BatchSettings(
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_ms / 1e3,
            max_queue=settings.max_queue,
        )
        return ServedModel(
            name=name,
            versions={
                version: ServedVersion(
                    engine=engine,
                    batcher=Batcher(observed(engine, self._on_batch), batching, self._thread),
                    robustness=read_robustness(self._repository, name, version),
                )
                for version, engine in loaded.engines.items()
            },
            default_version=loaded.default_version,
            aliases=loaded.aliases,
        )


def observed(engine: Engine, on_batch: OnBatch) -> Run:
    """The engine's `run`, which tells of each batch that it has run."""
    name, version = engine.manifest.name, engine.manifest.version

    def run(images: Images) -> tuple[Floats, Floats]:
        start = time.monotonic()
        outputs = engine.run(images)
        on_batch(name, version, len(images), time.monotonic() - start)
        return outputs

    return run


def warm_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, ... and max_batch itself: every buffer and kernel that a later batch may need."""
    return [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch] + [max_batch]
