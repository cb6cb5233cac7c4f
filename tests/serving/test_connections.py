"""Connections as clients of other languages keep them, by frames of HTTP/2."""

import asyncio
import struct
from pathlib import Path

import grpc
import pytest

from protos.pawprint.v1.classifier_pb2_grpc import ClassifierServiceStub
from tests.conftest import running_server
from tests.serving.frames import (
    ACK,
    GOAWAY,
    MAX_CONCURRENT_STREAMS,
    PING,
    PREFACE,
    SETTINGS,
    beginning,
    frame,
    frames,
)
from tests.serving.held_model import until


async def ended_by_pings(address: str, every_s: float) -> bool:
    """Whether a connection without a call is ended before its sixth ping is answered."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
    came = b""
    for number in range(6):
        await asyncio.sleep(every_s)
        content = bytes([number]) * 8
        writer.write(frame(PING, 0, 0, content))
        while (PING, ACK, content) not in frames(came):
            data = await asyncio.wait_for(reader.read(4096), 20)
            came += data
            if not data or any(kind == GOAWAY for kind, _, _ in frames(came)):
                writer.close()
                return True
    writer.close()
    return False


async def test_a_connection_has_room_for_health_and_refusals_beside_what_is_answered(
    models: Path,
) -> None:
    async with running_server(models, max_calls=9, max_streams=7) as running:
        host, _, port = running.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
        came = b""
        while not (told := [data for kind, _, data in frames(came) if kind == SETTINGS]):
            came += await asyncio.wait_for(reader.read(4096), 20)
        writer.close()
    assert dict(struct.iter_unpack(">HI", told[0]))[MAX_CONCURRENT_STREAMS] == 9 + 7 + 128


async def test_pings_keep_an_idle_connection_unless_they_are_too_many(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go, Java, Node: keepalive without calls, for networks that forget what is quiet."""
    monkeypatch.setattr("serving.server.PING_INTERVAL_MS", 50)
    async with running_server(models) as running:
        assert not await ended_by_pings(running.address, every_s=0.06)
    monkeypatch.undo()
    async with running_server(models) as running:
        assert await ended_by_pings(running.address, every_s=0.06)


async def test_a_caller_whose_network_is_cut_gives_its_stream_back(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 of them would have all streams that may be open. Who answers pings may be silent."""
    monkeypatch.setattr("serving.server.SILENT_MS", 300)
    monkeypatch.setattr("serving.server.GONE_MS", 300)
    async with (
        running_server(models) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        streams = running.server._edge._streams
        silent = ClassifierServiceStub(channel).ClassifyStream()
        await until(lambda: streams.total() == 1)
        host, _, port = running.address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        method = "/pawprint.v1.ClassifierService/ClassifyStream"
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + beginning(method, stream=1))
        await until(lambda: streams.total() == 2)
        await until(lambda: streams.total() == 1)
        writer.close()
        await silent.done_writing()
        assert await silent.code() is grpc.StatusCode.OK
