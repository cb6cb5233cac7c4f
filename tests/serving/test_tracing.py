"""Spans of a real server, as an OpenTelemetry collector receives them."""

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.edge import Call
from serving.tracing import Tracing
from tests.commands import run_python
from tests.conftest import ServerProcess
from tests.photos import jpeg

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.services: set[str] = set()

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object):
        for resource in request.resource_spans:
            self.services |= {
                a.value.string_value
                for a in resource.resource.attributes
                if a.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Its address is in the environment of servers that are started."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    collecting = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collecting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pets-server")
    yield collecting
    server.stop(None).wait()


def finished_call() -> Call:
    """That took the last second."""
    now = time.monotonic()
    return Call(
        method="Classify",
        start=now - 1,
        deadline=math.inf,
        metadata={},
        request_id="1",
        end=now,
    )


def test_a_call_is_a_span_in_its_callers_trace(
    collector: Collector, start: Callable[..., ServerProcess], models: Path
) -> None:
    server = start(models)
    with grpc.insecure_channel(server.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        request = pb.ClassifyRequest(model="pets", images=[jpeg()])
        stub.Classify(request, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")])
        unsampled = f"00-{TRACE[::-1]}-{PARENT}-00"
        stub.Classify(request, metadata=[("traceparent", unsampled)])
        with pytest.raises(grpc.RpcError):
            stub.Classify(pb.ClassifyRequest(model="cars", images=[jpeg()]))
    status, _, err = server.stop()
    assert status == 0, err  # what was not sent yet is sent before the end
    assert collector.services == {"pets-server"}
    traced = {span.name: span for span in collector.spans if span.trace_id.hex() == TRACE}
    assert traced.keys() == {"Classify", "decode", "queue", "inference"}
    call = traced["Classify"]
    assert call.parent_span_id.hex() == PARENT and call.kind == trace_pb2.Span.SPAN_KIND_SERVER
    attributes = {a.key: a.value for a in call.attributes}
    assert attributes["pawprint.model"].string_value == "pets"
    assert attributes["pawprint.photos"].int_value == 1
    order = ("decode", "queue", "inference")
    times = [call.start_time_unix_nano]
    for name in order:
        span = traced[name]
        assert span.parent_span_id == call.span_id
        times += [span.start_time_unix_nano, span.end_time_unix_nano]
    times.append(call.end_time_unix_nano)
    slack_ns = 2_000_000  # each stage is timed where it happens: threads hand over in between
    assert all(
        later >= earlier - slack_ns for earlier, later in zip(times, times[1:], strict=False)
    )
    (failed,) = [span for span in collector.spans if span.trace_id.hex() != TRACE]
    assert failed.status.code == trace_pb2.Status.STATUS_CODE_ERROR  # and the unsampled is not here


def test_a_malformed_context_costs_no_call_and_no_line_of_the_log(
    collector: Collector, start: Callable[..., ServerProcess], models: Path
) -> None:
    server = start(models)
    parent = ("traceparent", f"00-{TRACE}-{PARENT}-01")
    with grpc.insecure_channel(server.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        for metadata in (
            [parent, ("tracestate", "no=member=at,all")],
            [parent, ("tracestate", "x" * 7000)],
            [("traceparent", "x" * 7000)],
        ):
            stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    status, _, err = server.stop()
    assert (status, "WARNING" in err) == (0, False), err
    assert [span.trace_id.hex() == TRACE for span in collector.spans] == [True, True, False]


def test_a_collector_that_never_answers_holds_up_no_stop(
    start: Callable[..., ServerProcess], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
        server = start(models)
        with grpc.insecure_channel(server.address) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            stub.Classify(pb.ClassifyRequest(model="pets", images=[jpeg()]))
        status, _, err = server.stop()
    assert status == 0
    assert "serving.tracing: the last spans were not taken within 3 s: they are lost\n" in err
    assert err.endswith(" INFO serving.serve: stopped\n") and "Traceback" not in err


def nonsense(request: bytes, context: grpc.ServicerContext) -> bytes:
    return b"\xff\xff"


def failure(request: bytes, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNKNOWN, "broken")


@pytest.mark.parametrize("answer", [nonsense, failure])
def test_a_batch_that_a_broken_receiver_has_had_is_one_line_of_the_log(
    start: Callable[..., ServerProcess],
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[..., object],
) -> None:
    method = grpc.unary_unary_rpc_method_handler(answer)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    receiver = grpc.server(futures.ThreadPoolExecutor(1))
    receiver.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"Export": method})]
    )
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    server = start(models)
    with grpc.insecure_channel(server.address) as channel:
        classifier_pb2_grpc.ClassifierServiceStub(channel).ListModels(pb.ListModelsRequest())
    status, _, err = server.stop()
    receiver.stop(None).wait()
    (line,) = [line for line in err.splitlines() if " INFO " not in line]
    assert status == 0 and f"Failed to export traces to 127.0.0.1:{port}" in line


@pytest.mark.parametrize(
    "attributes, name",
    [("service.name=shop,k8s.pod.name=p", "shop"), ("k8s.pod.name=p", "pawprint")],
)
async def test_the_name_of_the_service_may_stand_among_the_attributes(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, attributes: str, name: str
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    tracing = Tracing(os.environ)
    tracing.export(finished_call())
    await tracing.close()
    assert collector.services == {name}


async def test_spans_follow_a_clock_that_was_set(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing = Tracing(os.environ)
    hour_ns, time_ns = 3_600_000_000_000, time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: time_ns() + hour_ns)
    tracing.export(finished_call())
    await tracing.close()
    (span,) = collector.spans
    assert abs(span.end_time_unix_nano - time.time_ns()) < hour_ns / 2
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(1e9, abs=1e3)


def test_without_the_extra_the_variable_is_an_error_that_says_so(models: Path) -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; import serving.serve as s; "
        "s.main(['--models', sys.argv[1], '--port', '0', '--device', 'cpu'])"
    )
    done = run_python(
        "-c", code, models, env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    )
    assert done.returncode == 2
    assert "error: OTEL_EXPORTER_OTLP_ENDPOINT is set, but" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variable, value, why",
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "ten", "could not convert string to float: 'ten'"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1", "Invalid IPv6 URL"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", 'Invalid value "zip" for compression'),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nope", "[Errno 2] No such file or directory: '/nope'"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size must be a positive integer"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "ten", "OTEL_SPAN_EVENT_COUNT_LIMIT must be a non-neg"),
    ],
)
def test_a_variable_that_is_wrong_is_status_2_and_one_line(
    models: Path, variable: str, value: str, why: str
) -> None:
    flags = ("--models", models, "--port", "0", "--device", "cpu")
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = run_python("-m", "serving.serve", *flags, env=environment | {variable: value})
    line = "error: OpenTelemetry can't use its variables in the environment (OTEL_...): "
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{line}{why}")


@pytest.mark.parametrize(
    "variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"]
)
def test_a_key_for_the_receiver_that_is_written_wrongly_is_not_shown(
    start: Callable[..., ServerProcess],
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, "authorization: Bearer s3cret")
    status, _, err = start(models).stop()
    assert status == 0 and "is not NAME=VALUE" in err
    assert "s3cret" not in err
