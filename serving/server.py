"""The life of a server: bind, load and prove the models, serve, drain, end."""

import asyncio
import functools
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.pawprint.v1 import classifier_pb2, classifier_pb2_grpc
from serving.batching import Batcher, BatchSettings
from serving.catalogue import Catalogue, ServedModel, ServedVersion
from serving.classification import Classifier, Limits
from serving.commandline import fail
from serving.cores import usable_cores
from serving.device import cuda_problem
from serving.engine import load_engine
from serving.errors import NotFound, PawprintError, Unavailable
from serving.inference_thread import InferenceThread
from serving.loading import LoadedModel, load_model, read_robustness
from serving.service import ClassifierService
from serving.settings import ServerSettings, read_settings
from serving.storage import open_repository

log = logging.getLogger(__name__)

SERVICE = classifier_pb2.DESCRIPTOR.services_by_name["ClassifierService"].full_name
MIB = 1024 * 1024
# Above our own limit, whose error says more, so that gRPC's cuts off only what is far over it.
MESSAGE_MARGIN = MIB
# A draining server that was asked nothing for so long closes the streams that are still open.
QUIET_S = 1.0


class Server:
    """open, load, drain, close: in this order, on one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._repository = open_repository(settings.models)
        self._classifier = Classifier(
            settings.decoders,
            Limits(
                max_photos=settings.max_photos,
                max_photo_bytes=settings.max_photo_mib * MIB,
                max_pixels=settings.max_megapixels * 1_000_000,
            ),
        )
        self._service = ClassifierService(
            self._classifier,
            max_message_bytes=settings.max_message_mib * MIB,
            max_stream_in_flight=settings.max_stream_in_flight,
        )
        self._health = health.aio.HealthServicer()
        self._thread = InferenceThread("inference")
        self.catalogue: Catalogue | None = None  # None until loaded
        self._grpc = grpc.aio.server(
            options=[
                (
                    "grpc.max_receive_message_length",
                    settings.max_message_mib * MIB + MESSAGE_MARGIN,
                ),
                ("grpc.max_send_message_length", -1),
                # Our clients ping an answer that is long in coming; gRPC would call that abuse.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.so_reuseport", 0),  # else a second server would silently share the port
            ]
        )

    async def open(self) -> int:
        """Listen, not yet serving; returns the port. Raises Unavailable if it can't be had."""
        settings = self._settings
        classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(self._service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(
            [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], self._grpc
        )
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = int(self._grpc.add_insecure_port(f"{host}:{settings.port}"))
        except RuntimeError as error:
            raise Unavailable(
                f"can't listen on {host}:{settings.port}; is another server there?"
            ) from error
        await self._grpc.start()
        return port

    async def load(self) -> Catalogue:
        """Load, prove and warm every model, then report SERVING.

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
        catalogue = self.catalogue = Catalogue(models)
        self._service.serve(catalogue)
        await self._report(health_pb2.HealthCheckResponse.SERVING)
        return catalogue

    async def drain(self) -> None:
        """Report NOT_SERVING, take no new calls, let running ones finish within `drain_s`."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._grpc.stop(self._settings.drain_s))
        # Health watchers and idle streams would hold the server open for all of drain_s.
        quiet = asyncio.ensure_future(self._service.drain(QUIET_S))
        await asyncio.wait({stopping, quiet}, return_when=asyncio.FIRST_COMPLETED)
        quiet.cancel()
        await self._grpc.stop(0)
        await stopping

    async def close(self) -> None:
        """End what is left at once, and the threads."""
        await self._grpc.stop(0)
        self._classifier.close()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.close)

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
                    batcher=Batcher(engine.run, batching, self._thread),
                    robustness=read_robustness(self._repository, name, version),
                )
                for version, engine in loaded.engines.items()
            },
            default_version=loaded.default_version,
            aliases=loaded.aliases,
        )

    async def _report(self, status: int) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises what Server.open and Server.load raise."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = Server(settings)
    try:
        port = await server.open()
        stop = asyncio.ensure_future(stopped.wait())
        loading = asyncio.ensure_future(server.load())
        await asyncio.wait({stop, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            announce(settings, port, loading.result())
            await stop
            log.info("stopping: running calls may finish within %g s", settings.drain_s)
            await server.drain()
        else:
            loading.cancel()
    finally:
        await server.close()
    log.info("stopped")


def warm_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, ... and max_batch itself: every buffer and kernel that a later batch may need."""
    return [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch] + [max_batch]


def announce(settings: ServerSettings, port: int, catalogue: Catalogue) -> None:
    """Write the port file, whose appearance means ready, and one line on stdout: where, and what.

    Raises Unavailable if the port file can't be written.
    """
    if settings.port_file:
        path = Path(settings.port_file)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(f"{port}\n")
            os.replace(part, path)
        except OSError as error:
            raise Unavailable(f"the port file can't be written: {error}") from error
    served = [
        f"{name}/{version}"
        for name, model in catalogue.models.items()
        for version in model.versions
    ]
    print(f"serving on {settings.host}:{port}: {', '.join(served)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.captureWarnings(True)  # Pillow's, of odd photos: dated lines like all others
    try:
        settings = read_settings(arguments, os.environ)
        problem = cuda_problem() if settings.device != "cpu" else None
        if settings.device == "auto":
            log.info("device: %s", f"cpu, for {problem}" if problem else "cuda")
        log.info(
            "%d usable cores: %d threads infer, %d decode",
            usable_cores(),
            settings.inference_threads,
            settings.decoders,
        )
        asyncio.run(serve(settings))
    except NotFound as error:
        fail(str(error), status=1)
    except PawprintError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
