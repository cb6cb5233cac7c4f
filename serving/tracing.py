"""OpenTelemetry traces of calls (extra `otel`): on where OTEL_EXPORTER_OTLP_ENDPOINT is set.

The caller's W3C context (metadata `traceparent`) is carried on. Spans are made once a call has
ended, from the times that were taken anyway: nothing is added to the call itself.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import grpc

from serving.edge import Call
from serving.errors import InvalidRequest, to_install

log = logging.getLogger(__name__)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
# Where one can't be read, the SDK shows a traceback and goes on without it, in vain.
_FILES = tuple(
    f"OTEL_EXPORTER_OTLP_{which}{file}"
    for which in ("", "TRACES_")
    for file in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
)
SERVICE_NAME = "service.name"
_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc.exporter"
_WRONG = "OpenTelemetry can't use its variables in the environment (OTEL_...)"
# What a stop waits for a receiver, which may hang or be gone; OpenTelemetry itself takes 30 s.
SENDING_S = 3.0


class Tracing:
    """`export` is a sink of the edge; spans leave in batches, from a thread of OpenTelemetry's."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises InvalidRequest if the extra is not installed, or a variable of it is wrong."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InvalidRequest(
                f"{ENDPOINT} is set, but OpenTelemetry can't be loaded ({error}): unset it, or "
                f"{to_install('otel')}"
            ) from error
        except ValueError as error:  # of a variable that is read where it is imported
            raise InvalidRequest(f"{_WRONG}: {error}") from error
        # It warns of each malformed context, with up to 8 KiB of the caller's own words.
        logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
        # Of each batch that a receiver fails at, or answers with nonsense, the exporter has a line
        # that says all. The tracebacks are its own, and that of gRPC's blocking client, which
        # nothing else uses in a server.
        logging.getLogger(_EXPORTER).addFilter(_without_traceback)
        logging.getLogger("grpc._common").setLevel(logging.CRITICAL)
        # It shows each header that it can't read, which may be a key.
        logging.getLogger("opentelemetry.util.re").addFilter(_without_header)
        try:  # as the SDK's variables have it, which raises what it likes
            for variable in _FILES:
                if file := environment.get(variable):
                    Path(file).read_bytes()
            resource = Resource.create()
            if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
                resource = resource.merge(Resource({SERVICE_NAME: "pawprint"}))
            # A provider of its own, not the global one: a server is no library's guest.
            self._provider = TracerProvider(resource=resource)
            self._exporter = OTLPSpanExporter()
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        except Exception as error:
            raise InvalidRequest(f"{_WRONG}: {error}") from error
        self._tracer = self._provider.get_tracer("pawprint.serving")
        self._extract = TraceContextTextMapPropagator().extract
        self._child_of = trace.set_span_in_context
        self._kind = trace.SpanKind.SERVER
        self._error = trace.Status(trace.StatusCode.ERROR)

    def export(self, call: Call) -> None:
        # Of now, for the clock of the machine may have been set since the last call.
        epoch_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            call.method,
            context=self._extract(call.metadata),
            kind=self._kind,
            start_time=_ns(call.start, epoch_ns),
            attributes={
                "rpc.system": "grpc",
                "rpc.method": call.method,
                "rpc.grpc.status_code": call.code.value[0],
                "pawprint.model": call.model,
                "pawprint.version": call.version,
                "pawprint.photos": call.photos,
                "pawprint.request_id": call.request_id,
            },
        )
        if call.inferred is not None:
            context = self._child_of(span)
            for stage, (start, end) in _stages(call).items():
                begun = _ns(start, epoch_ns)
                child = self._tracer.start_span(stage, context=context, start_time=begun)
                child.end(_ns(end, epoch_ns))
        if call.code is not grpc.StatusCode.OK:
            span.set_status(self._error)
        span.end(_ns(call.end, epoch_ns))

    async def close(self) -> None:
        """Send what is left, within SENDING_S."""
        closing = asyncio.get_running_loop().run_in_executor(None, self._provider.shutdown)
        await asyncio.wait({closing}, timeout=SENDING_S)
        if not closing.done():
            log.warning("the last spans were not taken within %g s: they are lost", SENDING_S)
            logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # of each batch of them
            self._exporter.shutdown()
        await closing


def tracing_of(environment: Mapping[str, str]) -> Tracing | None:
    """None where no endpoint is set. Raises InvalidRequest."""
    return Tracing(environment) if environment.get(ENDPOINT) else None


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _without_header(record: logging.LogRecord) -> bool:
    record.msg, record.args = "a header in OTEL_EXPORTER_OTLP_HEADERS is not NAME=VALUE", ()
    return True


def _ns(seconds: float, epoch_ns: int) -> int:
    """From the monotonic clock of a call to nanoseconds since 1970."""
    return epoch_ns + round(1e9 * seconds)


def _stages(call: Call) -> dict[str, tuple[float, float]]:
    """Start and end of each stage, monotonic clock. Those of the photo that was answered last: its
    batch ended as the call did."""
    assert call.inferred is not None
    inferred = call.inferred
    running = inferred.answered - inferred.inference_s
    return {
        "decode": (call.start, inferred.decoded),
        "queue": (running - inferred.queue_s, running),
        "inference": (running, inferred.answered),
    }
