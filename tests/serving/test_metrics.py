"""What a scrape of a running server says, against what was really called."""

import asyncio
import http.client
import json
import logging
import re
import resource
import signal
import socket
import socketserver
import struct
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from serving.client import AsyncClient, Client
from serving.errors import InvalidRequest, NotFound, Unavailable
from serving.log_format import TextFormatter
from serving.metrics_server import MetricsServer
from serving.repository import Repository
from serving.server import Server
from serving.settings import ServerSettings
from tests import waiting
from tests.conftest import ROOT, Running, ServerProcess, running_server
from tests.photos import black, encode, jpeg, noise
from tests.ports import free_port
from tests.serving.held_model import HeldModel, until
from tests.serving.test_inference_protocol import PIXELS, Stub, raw_pixels
from tests.tiny import build_version, familiarity_of, golden_of
from tests.waiting import until_said


def fetch(port: int, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Scrape:
    def __init__(self, port: int) -> None:
        status, text = fetch(port, "/metrics")
        assert status == 200
        self.samples = [s for f in text_string_to_metric_families(text) for s in f.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        found = [s for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(sample.value for sample in found)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def running(models: Path, port: int) -> AsyncIterator[Running]:
    async with running_server(models, metrics_port=port) as server:
        yield server


async def scrape(port: int) -> Scrape:
    return await asyncio.to_thread(Scrape, port)


async def test_calls_photos_stages_and_batches_are_counted(running: Running, port: int) -> None:
    begun = time.monotonic()
    async with AsyncClient(running.address) as client:
        for _ in range(3):
            await client.classify([jpeg(), jpeg(seed=1)], model="pets")
        with pytest.raises(InvalidRequest):
            await client.classify([b"junk"], model="pets")
        with pytest.raises(NotFound):
            await client.classify([jpeg()], model="no such model")
        await client.list_models()
    took_s = time.monotonic() - begun
    said = await scrape(port)
    pets = {"model": "pets", "version": "1"}
    calls = "pawprint_calls_total"
    assert said.value(calls, method="Classify", code="OK", **pets) == 3
    assert said.value(calls, method="Classify", code="INVALID_ARGUMENT", **pets) == 1
    unknown = {"model": "unknown", "version": "unknown"}
    assert said.value(calls, method="Classify", code="NOT_FOUND", **unknown) == 1
    assert said.value(calls, method="ListModels", code="OK") == 1
    assert said.value(calls) == 6
    assert said.value("pawprint_photos_total", **pets) == 6
    for stage in ("decode", "queue", "inference"):
        assert said.value("pawprint_stage_seconds_count", stage=stage, **pets) == 3
    assert said.value("pawprint_call_seconds_count", method="Classify", **pets) == 4
    parts = said.value("pawprint_stage_seconds_sum", stage="inference")
    assert 0 < parts < said.value("pawprint_call_seconds_sum", method="Classify", **pets) < took_s
    assert said.value("pawprint_batch_photos_sum", **pets) == 6
    assert 3 <= said.value("pawprint_batch_photos_count", **pets) <= 6
    assert 0 < said.value("pawprint_batch_seconds_sum", **pets) < took_s
    assert said.value("pawprint_ready") == 1
    assert said.value("pawprint_model_loaded", precision="fp32", device="cpu", **pets) == 1
    assert said.value("process_resident_memory_bytes") > 1e6
    assert not any("no such model" in str(s.labels) for s in said.samples)


async def test_how_sure_it_is_stands_beside_how_often_it_was_right(
    running: Running, models: Path, port: int
) -> None:
    """By either service; of photos that were answered, and of no other."""
    async with AsyncClient(running.address) as client:
        two = await client.classify([jpeg(), b"junk", jpeg(seed=1)], model="pets")
        with pytest.raises(InvalidRequest):
            await client.classify([b"junk"], model="pets")
    sure = [result.labels[0].probability for result in two.results if result.labels]
    async with grpc.aio.insecure_channel(running.address) as channel:
        answer = await Stub(channel).ModelInfer(raw_pixels())
    sure += np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(3, 2).max(axis=1).tolist()
    said = await scrape(port)
    pets = {"model": "pets", "version": "1"}
    assert said.value("pawprint_top_probability_count", **pets) == 5
    assert said.value("pawprint_top_probability_sum", **pets) == pytest.approx(sum(sure), rel=1e-6)
    least = said.value("pawprint_top_probability_bucket", le="0.5", **pets)
    assert least == sum(probability <= 0.5 for probability in sure)
    measured = Repository(models).manifest("pets", 1).variants["fp32"].metrics
    assert said.value("pawprint_model_accuracy", **pets) == measured.accuracy
    assert said.value("pawprint_model_calibration_error", **pets) == measured.ece


async def test_unfamiliar_photos_are_counted_once_and_those_of_copies_never(
    models: Path, port: int
) -> None:
    for _ in range(2):
        build_version(models, "pets", familiar=True)
    settings = {"versions": "all", "shadow": "pets=2:1.0", "metrics_port": port}
    async with running_server(models, **settings) as running:
        async with AsyncClient(running.address) as client:
            photos = [black(), encode(noise(32), "PNG"), b"junk", black()]
            await client.classify(photos, model="pets")
            await client.classify(photos, model="pets", version=1)
            with pytest.raises(InvalidRequest):
                await client.classify([b"junk"], model="pets")
        async with grpc.aio.insecure_channel(running.address) as channel:
            await Stub(channel).ModelInfer(raw_pixels())
        counts = running.server._classifier.shadowing.counts
        await until(lambda: sum(counts.values()) == 9)
        said = await scrape(port)
    strange = int((familiarity_of(PIXELS) <= 0.01).sum())
    unfamiliar = "pawprint_unfamiliar_photos_total"
    found = [(s.labels["version"], s.value) for s in said.samples if s.name == unfamiliar]
    assert found == [("3", 2 + strange)]  # the first can't tell, the second got copies alone
    share = "pawprint_model_unfamiliar_share"
    shares = [(s.labels["version"], s.value) for s in said.samples if s.name == share]
    assert shares == [("2", 0.0), ("3", 0.0)]


async def test_the_documentation_names_every_metric(models: Path, port: int) -> None:
    build_version(models, "pets", familiar=True)
    async with (
        running_server(models, metrics_port=port) as running,
        AsyncClient(running.address) as client,
    ):
        await client.classify([jpeg()], model="pets")
        _, text = await asyncio.to_thread(fetch, port, "/metrics")
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE pawp"))
    served = {name for name in kinds if not name.endswith("_created")}
    page = (ROOT / "docs/observability.md").read_text()
    named = set(re.findall(r"^\| `(pawprint_\w+)`", page, re.MULTILINE))
    elsewhere = {"pawprint_gpu_memory_bytes", "pawprint_certificate_expiry_timestamp_seconds"}
    assert named - elsewhere == served - elsewhere


async def test_gauges_show_what_waits(running: Running, port: int) -> None:
    held = HeldModel(running.server)
    async with AsyncClient(running.address) as client:
        first = asyncio.ensure_future(client.classify([jpeg()], model="pets"))
        await held.running(1)
        more = asyncio.ensure_future(client.classify([jpeg()] * 4, model="pets"))
        await held.waiting(4)
        said = await scrape(port)
        assert said.value("pawprint_queue_photos", model="pets") == 4
        assert said.value("pawprint_photos_in_flight", model="pets") == 5
        assert said.value("pawprint_calls_in_flight") == 2
        held.release()
        await asyncio.gather(first, more)
    said = await scrape(port)
    for gauge in ("queue_photos", "photos_in_flight"):
        assert said.value(f"pawprint_{gauge}") == 0


async def test_a_repository_that_can_not_be_read_is_shown(running: Running, port: int) -> None:
    looked, troubles = (
        f"pawprint_repository_{name}" for name in ("last_look_timestamp_seconds", "troubles")
    )
    before = await scrape(port)
    assert before.value(troubles) == 0 and time.time() - before.value(looked) < 60
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no folder can be opened
    try:
        await running.server.control.rescan()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    meanwhile = await scrape(port)
    assert meanwhile.value(troubles) == 1 and meanwhile.value(looked) == before.value(looked)
    assert meanwhile.value("pawprint_ready") == 1
    await running.server.control.rescan()
    after = await scrape(port)
    assert after.value(troubles) == 0 and after.value(looked) > before.value(looked)


async def test_the_first_refused_version_is_an_increase(models: Path, port: int) -> None:
    """Prometheus sees none where a series begins with it."""
    failures = "pawprint_model_load_failures_total"
    async with running_server(models, metrics_port=port, control="none") as running:
        said = await scrape(port)
        assert [s.value for s in said.samples if s.name == failures] == [0]
        build_version(models, "pets", golden=golden_of(seed=5))
        await running.server.control.rescan()
        assert (await scrape(port)).value(failures, model="pets") == 1


async def test_a_refused_version_is_counted_once_and_shown(models: Path, port: int) -> None:
    build_version(models, "pets", golden=golden_of(seed=5))
    async with running_server(models, metrics_port=port, poll_s=0.1) as running:
        said = await scrape(port)
        failures = "pawprint_model_load_failures_total"
        assert said.value(failures, model="pets") == 1
        state = "pawprint_model_version_state"
        assert said.value(state, version="2", state="refused") == 1
        assert said.value(state, version="1", state="serving") == 1
        build_version(models, "pets", seed=3)
        await until(lambda: 3 in running.server.catalogue.models["pets"].versions)
        said = await scrape(port)
        assert said.value(failures, model="pets") == 1
        assert said.value(state, version="3", state="serving") == 1
        assert said.value("pawprint_model_loaded", version="3", default="true") == 1
        assert said.value("pawprint_model_loaded", version="1") == 0


async def test_a_version_that_was_let_go_is_counted_to_its_end_and_then_forgotten(
    models: Path, port: int
) -> None:
    """A scraper has still to come when another takes its place."""
    build_version(models, "birds")
    async with (
        running_server(models, metrics_port=port, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        await client.classify([jpeg()], model="birds")
        for version in (1, 2, 3, 4):
            await client.classify([jpeg()], model="pets")
            running.server.control._restart_soon("pets", version)
            await asyncio.wait(running.server.control._restarts)
            said = await scrape(port)
            named = {(s.labels.get("model"), s.labels.get("version")) for s in said.samples}
            lately = {("pets", str(v)) for v in (version - 1, version) if v}
            here = lately | {("birds", "1")}
            assert {pair for pair in named if all(pair)} == here
            for model, number in here:
                labels = {"model": model, "version": number}
                for counter in ("calls_total", "photos_total", "batch_photos_count"):
                    assert said.value(f"pawprint_{counter}", **labels) == 1
            assert len(running.server._statistics._tallies) == 2
            build_version(models, "pets", seed=version, familiar=True)
            await running.server.control.rescan()


async def scrape_of_three_shadowed(running: Running, port: int) -> Scrape:
    """Once three photos, and their copies, are answered."""
    async with AsyncClient(running.address) as client:
        await client.classify([jpeg(seed=seed) for seed in range(3)], model="pets")
    counts = running.server._classifier.shadowing.counts
    await until(lambda: sum(counts.values()) == 3)
    return await scrape(port)


async def test_shadows_are_counted(models: Path, port: int) -> None:
    build_version(models, "pets")  # the same weights: every first label agrees
    settings = {"versions": "all", "shadow": "pets=1:1.0", "metrics_port": port}
    async with running_server(models, **settings) as running:
        said = await scrape_of_three_shadowed(running, port)
        agreed = {"version": "2", "shadow_version": "1", "outcome": "agreed"}
        assert said.value("pawprint_shadow_photos_total", model="pets", **agreed) == 3
        for version, default in (("1", "false"), ("2", "true")):
            assert said.value("pawprint_model_loaded", version=version, default=default) == 1


async def test_a_shadow_that_never_agrees_has_a_share_too(models: Path, port: int) -> None:
    """Prometheus divides nothing by something to nothing: its panel would be empty."""
    build_version(models, "pets", labels=("kitten", "puppy"))
    settings = {"versions": "1", "shadow": "pets=2:1.0", "metrics_port": port}
    Repository(models).promote("pets", 1)
    async with running_server(models, **settings) as running:
        said = await scrape_of_three_shadowed(running, port)
    shadow = "pawprint_shadow_photos_total"
    found = {s.labels["outcome"]: s.value for s in said.samples if s.name == shadow}
    assert found == {"agreed": 0, "differed": 3, "failed": 0, "skipped": 0}


async def test_a_cancelled_call_is_counted_as_cancelled(running: Running, port: int) -> None:
    held = HeldModel(running.server)
    async with AsyncClient(running.address) as client:
        call = asyncio.ensure_future(client.classify([jpeg()], model="pets"))
        await held.running(1)
        call.cancel()
        await asyncio.wait([call])
        await held.admitted(0)
        held.release()
    said = await scrape(port)
    assert said.value("pawprint_calls_total", code="CANCELLED", model="pets") == 1


async def test_probes_and_unknown_paths(models: Path, port: int) -> None:
    server = Server(ServerSettings(models=str(models), port=0, device="cpu", metrics_port=port))
    await server.open()
    try:
        for path, status in (("/healthz", 200), ("/readyz", 503), ("/", 404), ("/etc", 404)):
            assert (await asyncio.to_thread(fetch, port, path))[0] == status
        looked = "pawprint_repository_last_look_timestamp_seconds"
        assert looked not in [sample.name for sample in (await scrape(port)).samples]  # never yet
        await server.load()
        assert time.time() - (await scrape(port)).value(looked) < 60
        assert await asyncio.to_thread(fetch, port, "/readyz?x=1") == (200, "ok\n")
        open_metrics = await asyncio.to_thread(
            fetch, port, "/metrics", Accept="application/openmetrics-text"
        )
        assert open_metrics[1].endswith("# EOF\n")
    finally:
        await server.close()
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(fetch, port, "/healthz")


async def test_a_port_that_is_taken_is_an_error_that_says_so(models: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        server = Server(ServerSettings(models=str(models), port=0, device="cpu", metrics_port=port))
        with pytest.raises(Unavailable, match=f"can't serve metrics on 127.0.0.1:{port}"):
            await server.open()
        await server.close()


@pytest.mark.parametrize("up", [True, False])
def test_a_probe_by_head_gets_the_status_alone(*, up: bool) -> None:
    with MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: up) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        with closing(connection):
            connection.request("HEAD", "/readyz")
            head = connection.getresponse()
            assert (head.status, head.read()) == (200 if up else 503, b"")
            connection.close()
            connection.request("GET", "/readyz")
            body = connection.getresponse().read()
    assert int(head.headers["Content-Length"]) == len(body) > 0


def test_it_listens_on_ipv6_too() -> None:
    try:
        server = MetricsServer("::1", 0, CollectorRegistry(), lambda: True)
    except Unavailable as error:
        pytest.skip(f"no IPv6 here: {error}")
    with server, urllib.request.urlopen(f"http://[::1]:{server.port}/readyz") as response:
        assert response.status == 200


def test_a_probe_has_a_place_behind_a_burst_of_scrapes(
    start: Callable[..., ServerProcess], models: Path, port: int
) -> None:
    server = start(models, "--metrics-port", str(port))
    server.process.send_signal(signal.SIGSTOP)  # takes none of them meanwhile
    with ExitStack() as open_ones:
        for _ in range(100):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            open_ones.enter_context(connection)
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        server.process.send_signal(signal.SIGCONT)
        assert fetch(port, "/readyz") == (200, "ok\n")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_every_address_is_one_of_ipv6_too() -> None:
    """As of the port for calls: a cluster may have no other."""
    with MetricsServer("0.0.0.0", 0, CollectorRegistry(), lambda: True) as server:
        for host in ("127.0.0.1", "[::1]"):
            with urllib.request.urlopen(f"http://{host}:{server.port}/readyz", timeout=10) as said:
                assert said.status == 200


def test_a_version_of_the_format_that_is_none_is_the_usual_one() -> None:
    with MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: True) as server:
        for version in ("banana", "=1", "1.x.y"):
            wanted = {"Accept": f"application/openmetrics-text; version={version}"}
            request = urllib.request.Request(
                f"http://127.0.0.1:{server.port}/metrics", None, wanted
            )
            with urllib.request.urlopen(request, timeout=10) as page:
                assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_metrics_that_can_not_be_gathered_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> float:
        raise ZeroDivisionError

    registry = CollectorRegistry()
    Gauge("broken", "One that fails", registry=registry).set_function(broken)
    with MetricsServer("127.0.0.1", 0, registry, lambda: True) as server:
        with pytest.raises(http.client.RemoteDisconnected):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10)
        waiting.until(lambda: "ZeroDivisionError" in caplog.text)


def test_a_connection_that_no_descriptor_is_free_for_costs_no_core_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = 0
    accept = socketserver.TCPServer.get_request

    def counted(server: socketserver.TCPServer) -> Any:
        nonlocal tries
        tries += 1
        return accept(server)

    monkeypatch.setattr(socketserver.TCPServer, "get_request", counted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: True) as server,
        socket.socket() as connection,
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            connection.connect(("127.0.0.1", server.port))
            time.sleep(0.5)  # of which the server tries again and again
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert 0 < tries < 20
        connection.settimeout(10)
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 200")


def test_logs_are_json_lines_with_the_request_id(
    start: Callable[..., ServerProcess], models: Path
) -> None:
    server = start(models, "--log-format", "json", "--access-log", "on")
    with grpc.insecure_channel(server.address) as channel:
        from protos.pawprint.v1 import classifier_pb2 as pb
        from protos.pawprint.v1 import classifier_pb2_grpc

        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        good = pb.ClassifyRequest(model="pets", images=[jpeg()])
        _, call = stub.Classify.with_call(good, metadata=[("x-request-id", "abc-1")])
        assert dict(call.trailing_metadata())["x-request-id"] == "abc-1"
        made = dict(stub.ListModels.with_call(pb.ListModelsRequest())[1].trailing_metadata())
        with pytest.raises(grpc.RpcError) as failed:
            stub.Classify(pb.ClassifyRequest(model="cars"), metadata=[("x-request-id", "x" * 500)])
        replaced = dict(failed.value.trailing_metadata())["x-request-id"]
    status, _, err = server.stop()
    assert status == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    first, second, third = (line for line in lines if line["logger"] == "serving.access")
    assert first["request_id"] == "abc-1" and first["code"] == "OK" and first["photos"] == 1
    assert (first["model"], first["version"], first["method"]) == ("pets", 1, "Classify")
    assert 0 < first["inference_ms"] < first["total_ms"]
    assert second["request_id"] == made["x-request-id"] and len(second["request_id"]) == 32
    assert third["code"] == "NOT_FOUND" and third["request_id"] == replaced
    assert len(replaced) == 32


def test_json_lines_hold_any_character_on_any_stream(
    start: Callable[..., ServerProcess],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    config = tmp_path / "é\u2028\x85.toml"
    config.touch()
    server = start(models, "--log-format", "json", "--config", str(config))
    config.unlink()
    server.process.send_signal(signal.SIGHUP)
    until_said(server.log, "the configuration stays as it was")
    _, _, err = server.stop()
    lines = [json.loads(line) for line in err.splitlines()]
    assert any(f"the configuration {config} can't be read" in line["message"] for line in lines)


def test_text_logs_name_the_fields(start: Callable[..., ServerProcess], models: Path) -> None:
    """And no caller's request id can look like one."""
    server = start(models, "--access-log", "on")
    with Client(server.address) as client:
        client.classify([jpeg()], model="pets")
    with grpc.insecure_channel(server.address) as channel:
        listing = channel.unary_unary("/pawprint.v1.ClassifierService/ListModels")
        listing(b"", metadata=[("x-request-id", "a code=OK")])
    _, _, err = server.stop()
    line, forged = [line for line in err.splitlines() if "serving.access" in line]
    assert ' request_id="a code=OK" ' in forged
    assert " INFO serving.access: call method=Classify code=OK request_id=" in line
    assert " photos=1 " in line and " inference_ms=" in line


def test_a_text_log_is_one_line_for_each_message_whatever_it_names() -> None:
    text = TextFormatter(worker=None)
    record = logging.makeLogRecord(
        {
            "msg": "%s is gone",
            "args": ("a\x1b[2J\n2026 INFO all is well",),
            "fields": {"model": "\x1b"},
        }
    )
    assert text.format(record).endswith(r" a\x1b[2J\n2026 INFO all is well is gone model=\x1b")
    try:
        raise ValueError("b\x1b[2J")
    except ValueError:
        record.exc_info = sys.exc_info()
    *_, last = text.format(record).splitlines()
    assert (
        last == r"ValueError: b\x1b[2J"
        and "Traceback (most recent call last):\n" in text.format(record)
    )


def test_photos_fill_no_log(start: Callable[..., ServerProcess], models: Path) -> None:
    """Pillow warns of each tag of an EXIF block that claims more than there is: 12 bytes of it were
    three lines in the log."""
    tags = range(1000, 5000)
    entries = b"".join(struct.pack("<HHII", tag, 2, 10**9, 8) for tag in tags)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    photo = jpeg()[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2) + block + jpeg()[2:]
    server = start(models)
    with Client(server.address) as client:
        assert client.classify([photo], model="pets").results[0].labels
    _, _, err = server.stop()
    assert "Skipping tag" not in err and len(err.splitlines()) < 10
