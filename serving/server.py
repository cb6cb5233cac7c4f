"""A server from its start to its end: bind, load and prove the models, answer, drain, close."""

import asyncio
import ipaddress
import logging
import os
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from protos.inference import grpc_service_pb2, grpc_service_pb2_grpc
from protos.pawprint.v1 import classifier_pb2, classifier_pb2_grpc
from serving.admin_service import admin_server
from serving.catalogue import Catalogue
from serving.channel import host_port
from serving.classification import Classifier
from serving.decoding import Limits
from serving.edge import Edge, EdgeLimits
from serving.health import Health
from serving.inference_service import InferenceService
from serving.inference_statistics import InferenceStatistics
from serving.inference_thread import InferenceThreads
from serving.lately import Lately
from serving.listening import can_not_listen, obstacle
from serving.log_format import log_access
from serving.malformed import Open, Registrar, unread
from serving.metrics import Metrics
from serving.metrics_server import MetricsServer
from serving.model_control import ModelControl
from serving.photo_formats import read_formats
from serving.service import ClassifierService
from serving.settings import ServerSettings, differing, taken_over
from serving.storage import open_repository
from serving.tls import ShownCertificate
from serving.tokens import Tokens
from serving.tracing import tracing_of
from serving.wiring import runs_at_once
from serving.worker import worker_index

log = logging.getLogger(__name__)

SERVICE = classifier_pb2.DESCRIPTOR.services_by_name["ClassifierService"].full_name
INFERENCE = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVICES = (SERVICE, INFERENCE)
MIB = 1024 * 1024
# Above our own limit, whose error says more, so that gRPC's cuts off only what is far over it.
MESSAGE_MARGIN = MIB
MORE_STREAMS = 128
# Who pings more often, three times, loses the connection.
PING_INTERVAL_MS = 5_000
# A caller whose network is cut says nothing. Where nothing comes for so long it is pinged; with no
# answer to that it is gone, and its streams with it. gRPC's own default is two hours.
SILENT_MS, GONE_MS = 60_000, 60_000
# A draining server that had no call for so long closes the streams that are still open.
QUIET_S = 1.0


class Server:
    """open and load, drain, close: in this order, on one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._classifier = Classifier(settings.decoders, limits(settings))
        self._statistics = InferenceStatistics()
        self._metrics = Metrics()
        self._metrics_server: MetricsServer | None = None
        self._lately = Lately()
        self._tracing = tracing_of(os.environ)
        self._edge = Edge(
            EdgeLimits(
                max_message_bytes=settings.max_message_mib * MIB,
                max_calls=settings.max_calls,
                max_streams=settings.max_streams,
                max_stream_in_flight=settings.max_stream_in_flight,
            ),
            Tokens(Path(settings.tokens)) if settings.tokens else None,
            sinks=(
                self._statistics.add,
                self._metrics.observe,
                *([log_access] if settings.access_log == "on" else []),
                *([self._tracing.export] if self._tracing else []),
            ),
        )
        self._health = Health()
        self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._threads = InferenceThreads(runs_at_once(settings))
        self.control = ModelControl(
            settings,
            open_repository(settings.models),
            self._threads,
            self._on_batch,
            self._on_change,
        )
        self._metrics.watch(self._edge, self._classifier.shadowing.counts, self.control.troubles)
        self._watching: asyncio.Task[None] | None = None
        self._admin: grpc.aio.Server | None = None
        self.catalogue: Catalogue | None = None  # None until loaded
        self._grpc = grpc.aio.server(
            options=[
                (
                    "grpc.max_receive_message_length",
                    settings.max_message_mib * MIB + MESSAGE_MARGIN,
                ),
                # Of one connection. Some above what is answered at once, for health and refusals.
                (
                    "grpc.max_concurrent_streams",
                    settings.max_calls + settings.max_streams + MORE_STREAMS,
                ),
                # Clients ping an answer that is long in coming, ours too, and many their idle
                # connections, which a network in between would forget; gRPC would call both abuse.
                ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", SILENT_MS),
                ("grpc.keepalive_timeout_ms", GONE_MS),  # that of TCP
                ("grpc.http2.ping_timeout_ms", GONE_MS),
                # Identity alone: a thousandth of it on the network would make a message in memory,
                # for health and reflection without a token. Photos are compressed already.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                # Else a second server would silently share the port.
                ("grpc.so_reuseport", int(worker_index() is not None)),
                *connection_age(settings),
            ]
        )

    @property
    def drain_s(self) -> float:
        """How long running calls may take to finish, as it is set now."""
        return self._settings.drain_s

    @property
    def ready(self) -> bool:
        """Whether it takes calls and has a version that answers."""
        return self._edge.ready

    async def open(self) -> int:
        """Listen, and serve what is loaded; returns the port. Raises Unavailable if it can't be
        had, InvalidRequest if the TLS files can't be used."""
        settings = self._settings
        registrar = Registrar(self._grpc, unread)
        classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(
            ClassifierService(self._classifier, self._edge), registrar
        )
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceService(
                self._classifier,
                self._edge,
                self._statistics,
                settings.max_delay_ms / 1e3,
            ),
            registrar,
        )
        registrar = Registrar(self._grpc, Open().checked)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(
                [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
            ),
            registrar,
        )
        where = (settings.host, settings.port)
        if settings.tokens and not settings.tls_cert and not is_loopback(settings.host):
            log.warning("tokens come over the network unencrypted: set tls_cert and tls_key")
        if settings.admin_port and not is_loopback(settings.admin_host):
            log.warning(
                "AdminService asks for no token and is not encrypted: whoever reaches %s loads and "
                "unloads models",
                host_port(settings.admin_host, settings.admin_port),
            )
        certificate = ShownCertificate(settings.tls_files) if settings.tls_files else None
        try:
            port = int(
                self._grpc.add_secure_port(host_port(*where), certificate.credentials)
                if certificate
                else self._grpc.add_insecure_port(host_port(*where))
            )
            if settings.admin_port:
                where = (settings.admin_host, settings.admin_port)
                self._admin = admin_server(self.control, host_port(*where))
                await self._admin.start()
        except RuntimeError as error:
            raise can_not_listen(*where, obstacle(*where)) from error
        if certificate:
            self._metrics.watch_certificate(certificate.ends)
        if settings.metrics_port:
            self._metrics_server = MetricsServer(
                settings.metrics_host,
                settings.metrics_port,
                self._metrics.registry,
                lambda: self.ready,
            )
        await self._grpc.start()
        return port

    async def load(self) -> Catalogue:
        """Load and prove every model, report SERVING, and from then on watch the repository.

        Raises what ModelControl.load does.
        """
        catalogue = await self.control.load()
        self._watching = asyncio.create_task(self.control.watch())
        return catalogue

    async def reconfigure(self, settings: ServerSettings) -> None:
        """Take over what can change in a running server; say what can't. Looks at the repository.

        What does not change is not what `settings` has, but what the server began with. Raises
        InvalidRequest where what can change does not fit that, NotFound if it asks for a model that
        is not there; then nothing changes.
        """
        live, fixed = differing(self._settings, settings)
        if fixed:
            log.warning("only a restart changes: %s", ", ".join(fixed))
        taken = taken_over(self._settings, settings)
        await self.control.check(taken)
        self._settings = taken
        self._classifier.limits = limits(self._settings)
        log.info("changed: %s", ", ".join(live) or "nothing")
        await self.control.reconfigure(self._settings)

    async def drain(self) -> None:
        """Report NOT_SERVING, take no new calls, let running ones finish within `drain_s`."""
        self._stop_watching()
        self._health.end()
        stopping = asyncio.ensure_future(self._grpc.stop(self.drain_s))
        # Health watchers and reflection's streams, which Edge does not count, would hold the server
        # open for all of drain_s.
        quiet = asyncio.ensure_future(self._edge.drain(QUIET_S))
        await asyncio.wait({stopping, quiet}, return_when=asyncio.FIRST_COMPLETED)
        quiet.cancel()
        await self._grpc.stop(0)
        await stopping

    async def close(self) -> None:
        """End what is left at once, and the threads."""
        self._stop_watching()
        await self._grpc.stop(0)
        if self._admin:
            await self._admin.stop(0)
        self.control.close()
        if self._metrics_server:
            self._metrics_server.close()
        if self._tracing:
            await self._tracing.close()
        await self._classifier.close()
        await asyncio.to_thread(self._threads.close)

    def _stop_watching(self) -> None:
        if self._watching:
            self._watching.cancel()

    async def _on_change(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._edge.serve(catalogue)
        self._metrics.set_states(self.control.states())
        here = {
            (model.name, version)
            for model in catalogue.models.values()
            for version in (*model.versions, *model.restarting)
        }
        self._statistics.keep_only(here)
        kept = self._lately.kept(here)
        self._metrics.keep_only(kept)
        self._classifier.shadowing.keep_only(kept)
        answer = health_pb2.HealthCheckResponse
        self._report(answer.SERVING if catalogue.can_answer else answer.NOT_SERVING)

    def _on_batch(self, model: str, version: int, photos: int, seconds: float) -> None:
        self._statistics.add_batch(model, version)
        self._metrics.observe_batch(model, version, photos, seconds)

    def _report(self, status: int) -> None:
        self._health.report(("", *SERVICES), status)


def limits(settings: ServerSettings) -> Limits:
    return Limits(
        max_photos=settings.max_photos,
        max_photo_bytes=settings.max_photo_mib * MIB,
        max_pixels=settings.max_megapixels * 1_000_000,
        formats=read_formats(settings.photo_formats),
    )


def connection_age(settings: ServerSettings) -> list[tuple[str, int]]:
    """gRPC varies the age by a tenth, so that connections don't all end at once."""
    if not settings.max_connection_age_s:
        return []
    return [
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1e3)),
        ("grpc.max_connection_age_grace_ms", round(settings.drain_s * 1e3)),
    ]


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
