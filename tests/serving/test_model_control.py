"""Versions that come, go and break under a running server; real repository, real calls."""

import asyncio
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from protos.pawprint.v1 import admin_pb2, admin_pb2_grpc, classifier_pb2_grpc
from serving import model_control
from serving.client import AsyncClient
from serving.errors import BrokenVersion, InvalidRequest, NotFound, Unavailable
from serving.loading import LoadedModel
from serving.observed_run import FAILURES_IN_A_ROW
from serving.repository import Repository
from serving.server import SERVICE
from tests.conftest import Running, running_server
from tests.photos import jpeg
from tests.ports import free_port
from tests.serving.held_model import HeldModel, until
from tests.serving.test_loading import flip
from tests.serving.test_service import request
from tests.tiny import build_version, golden_of

WATCH = {"poll_s": 0.05}


async def versions(client: AsyncClient, name: str = "pets") -> tuple[int, ...]:
    return next((m.versions for m in await client.list_models() if m.name == name), ())


async def answering(client: AsyncClient, version: int | str = "") -> int:
    return (await client.classify([jpeg()], model="pets", version=version)).version


async def until_served(running: Running, *wanted: int, name: str = "pets") -> None:
    def served() -> bool:
        model = running.server.catalogue.models.get(name)
        return model is not None and tuple(model.versions) == wanted

    await until(served)


async def test_a_new_version_takes_over_without_a_failed_call(models: Path) -> None:
    async with (
        running_server(models, **WATCH) as running,
        AsyncClient(running.address) as client,
    ):
        ended = asyncio.Event()
        seen: list[int] = []

        async def caller() -> None:
            while not ended.is_set():
                seen.append(await answering(client))

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for number in range(2, 7):
            await asyncio.to_thread(build_version, models, "pets", seed=number)
            await until(lambda number=number: number in seen or all(c.done() for c in callers))
        ended.set()
        await asyncio.gather(*callers)  # raises if any call failed
    assert set(seen) == {1, 2, 3, 4, 5, 6}


async def test_calls_in_flight_finish_on_the_version_they_began_with(models: Path) -> None:
    async with (
        running_server(models, **WATCH) as running,
        AsyncClient(running.address) as client,
    ):
        held = HeldModel(running.server)
        calls = [asyncio.ensure_future(answering(client)) for _ in range(5)]
        await held.admitted(5)
        build_version(models, "pets", seed=1)
        await until_served(running, 2)
        held.release()
        assert [await call for call in calls] == [1] * 5


async def test_what_is_let_go_frees_its_session(models: Path) -> None:
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        for number in range(2, 5):
            served = running.server.catalogue.models["pets"].versions[number - 1]
            gone = [weakref.ref(served), weakref.ref(served.engine._session)]
            del served
            assert await answering(client) == number - 1
            build_version(models, "pets", seed=number)
            await running.server.control.rescan()
            assert await answering(client) == number
            gc.collect()
            assert [reference() for reference in gone] == [None, None]


async def test_a_broken_version_is_refused_once_and_the_old_one_stays(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        build_version(models, "pets", golden=golden_of(seed=3))
        for _ in range(3):
            await running.server.control.rescan()
            assert await answering(client) == 1
        states = [(s.version, s.state) for s in running.server.control.states()]
        assert states == [(1, "serving"), (2, "refused")]
        assert "golden" in running.server.control.states()[1].reason
        refused = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(refused) == 1 and "pets/2" in refused[0].getMessage()
        build_version(models, "pets", seed=1)
        await running.server.control.rescan()
        assert await answering(client) == 3


async def test_a_repaired_version_is_tried_again(models: Path) -> None:
    build_version(models, "pets", seed=1)
    path = models / "pets/2/model.onnx"
    data = path.read_bytes()
    flip(path)
    async with (
        running_server(models, **WATCH) as running,
        AsyncClient(running.address) as client,
    ):
        assert await versions(client) == (1,)
        path.write_bytes(data)
        await until_served(running, 2)


async def test_another_version_under_the_same_number_is_loaded_anew(models: Path) -> None:
    """As where a version is deleted by hand, and its number given again."""
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        before = await client.classify([jpeg()], model="pets", top_k=2)
        shutil.rmtree(models / "pets/1")
        await running.server.control.rescan()
        build_version(models, "pets", seed=5)
        assert Repository(models).versions("pets") == [1]
        await running.server.control.rescan()
        after = await client.classify([jpeg()], model="pets", top_k=2)
        assert (before.version, after.version) == (1, 1)
        assert before.results[0].labels != after.results[0].labels


async def test_shares_of_calls_change_without_a_change_of_versions(models: Path) -> None:
    build_version(models, "pets", seed=1)
    async with (
        running_server(models, versions="all", control="explicit") as running,
        AsyncClient(running.address) as client,
    ):
        settings = running.server._settings
        for share, expected in (("pets=1:1.0", 1), ("", 2)):
            await running.server.reconfigure(replace(settings, canary=share))
            assert [await answering(client) for _ in range(5)] == [expected] * 5


@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped", "half-written"])
async def test_damage_to_a_loaded_version_changes_nothing(models: Path, damage: str) -> None:
    Repository(models).promote("pets", 1)
    async with (
        running_server(models, **WATCH) as running,
        AsyncClient(running.address) as client,
    ):
        path = models / "pets/1/model.onnx"
        if damage == "deleted":
            shutil.rmtree(models / "pets/1")
        elif damage == "truncated":
            path.write_bytes(path.read_bytes()[:100])
        elif damage == "flipped":
            flip(path)
        else:  # a copy that is under way: a number that no publisher would take yet
            (models / "pets/2").mkdir()
            (models / "pets/2/model.onnx").write_bytes(path.read_bytes()[:100])
        for _ in range(3):
            await running.server.control.rescan()
            assert await answering(client) == await answering(client, "stable") == 1
        build_version(models, "pets", seed=1)
        newest = Repository(models).versions("pets")[-1]
        Repository(models).promote("pets", newest)
        await until(lambda: running.server.catalogue.models["pets"].default_version == newest)
        assert await answering(client) == newest


async def test_a_moved_alias_is_followed_and_one_to_a_broken_version_is_not(models: Path) -> None:
    repository = Repository(models)
    build_version(models, "pets", seed=1)
    repository.promote("pets", 1)
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        assert (await answering(client), await answering(client, "stable")) == (1, 1)
        repository.promote("pets", 2)
        await running.server.control.rescan()
        assert (await answering(client), await answering(client, "stable")) == (2, 2)
        build_version(models, "pets", golden=golden_of(seed=9))
        repository.promote("pets", 3)
        await running.server.control.rescan()
        assert (await answering(client), await answering(client, "stable")) == (2, 2)


async def test_an_alias_of_a_version_that_has_not_come_stays_until_it_has(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in (1, 2, 3):
        build_version(models, "pets", seed=seed)
    Repository(models).promote("pets", 1)
    fourth, away = models / "pets" / "4", models / "pets" / ".4"
    fourth.rename(away)
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        # As where a repository is copied, and the aliases come first.
        (models / "pets" / "aliases" / "stable").write_text("4\n1\n")
        for _ in range(2):
            await running.server.control.rescan()
            assert (await answering(client), await answering(client, "stable")) == (1, 1)
        assert caplog.text.count("name versions that are not there: stable (4)") == 1
        away.rename(fourth)
        await running.server.control.rescan()
        assert (await answering(client), await answering(client, "stable")) == (4, 4)


@pytest.mark.parametrize(
    "policy, served",
    [
        ("latest:1", (1, 5)),
        ("latest:3", (1, 3, 4, 5)),
        ("all", (1, 2, 3, 4, 5)),
        ("2,4,9", (1, 2, 4)),
        ("alias", (1,)),
    ],
)
async def test_the_version_policy(models: Path, policy: str, served: tuple[int, ...]) -> None:
    for seed in range(1, 5):
        build_version(models, "pets", seed=seed)
    Repository(models).promote("pets", 1)
    async with (
        running_server(models, versions=policy) as running,
        AsyncClient(running.address) as client,
    ):
        assert await versions(client) == served


@pytest.mark.parametrize("asked", ["3", "9", "alias"])
async def test_where_nothing_that_is_asked_for_can_be_served_the_versions_of_before_stay(
    models: Path, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    build_version(models, "pets", seed=1)
    build_version(models, "pets", golden=golden_of(seed=9))  # refused
    build_version(models, "birds")
    async with (
        running_server(models, control="none", versions="1,2") as running,
        AsyncClient(running.address) as client,
    ):
        await running.server.reconfigure(replace(running.server.control.settings, versions=asked))
        await running.server.control.rescan()
        assert await versions(client) == (1, 2) and await answering(client) == 2
        assert await versions(client, "birds") == (1,)
        assert caplog.text.count("pets: no version that is asked for can be served") == 1
        if asked == "3":
            assert [s.version for s in running.server.control.states() if s.reason] == [3]
        await running.server.reconfigure(replace(running.server.control.settings, versions="1"))
        assert await versions(client) == (1,)


async def test_models_that_come_later_and_those_not_asked_for(models: Path) -> None:
    build_version(models, "birds")
    with pytest.raises(NotFound, match="no model 'fish' in"):
        async with running_server(models, only="pets,fish"):
            pass
    async with running_server(models, only="pets") as running:
        for change in (running.server.control.load_version, running.server.control.unload_version):
            with pytest.raises(InvalidRequest, match="this server serves only pets"):
                await change("birds", "1")
    async with (
        running_server(models, **WATCH) as running,
        AsyncClient(running.address) as client,
    ):
        build_version(models, "fish")
        await until_served(running, 1, name="fish")
        assert [m.name for m in await client.list_models()] == ["birds", "fish", "pets"]


async def test_a_repository_that_is_gone_is_said_once(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        control, away = running.server.control, models.with_name("away")
        last_look = control.troubles.last_look
        models.rename(away)
        for _ in range(3):
            await control.rescan()
        assert control.problems() == [f"{models} is not there"]
        models.write_text("not a folder")
        await control.rescan()
        assert await answering(client) == 1
        assert control.troubles.last_look == last_look
        models.unlink()
        models.mkdir()  # where it was mounted
        await control.rescan()
        assert control.problems() == [f"{models} holds no model"]
        assert await answering(client) == 1
        assert control.troubles.last_look == last_look
        models.rmdir()
        away.rename(models)
        await control.rescan()
        assert control.problems() == [] and control.troubles.last_look > last_look
    assert caplog.text.count("is not there") == 1
    assert not [r for r in caplog.records if "Traceback" in r.getMessage()]


async def test_the_trouble_of_one_model_is_not_that_of_the_others(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(models, "birds")
    Repository(models).promote("birds", 1)
    alias = models / "birds/aliases/stable"
    alias.unlink()
    alias.symlink_to("/proc/self/mem")  # a file whose reading is an error, for root too
    async with (
        running_server(models, control="explicit") as running,
        AsyncClient(running.address) as client,
    ):
        control = running.server.control
        assert [m.name for m in await client.list_models()] == ["pets"]
        build_version(models, "pets", seed=1)
        await control.rescan()
        assert await answering(client) == 2
        assert [line[:7] for line in control.problems()] == ["birds: "]
        alias.unlink()
        alias.write_text("1\n")
        await control.rescan()
        assert control.problems() == [] and await versions(client, "birds") == (1,)
        alias.unlink()
        alias.symlink_to("/proc/self/mem")
        build_version(models, "pets", seed=2)
        for _ in range(2):
            await control.rescan()
        assert await answering(client) == 3 and await versions(client, "birds") == (1,)
        for reference in ("", "1", "stable"):
            with pytest.raises(Unavailable, match="birds can't be read: .Errno 5"):
                await control.load_version("birds", reference)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2 and all("but: birds: [Errno 5]" in error for error in errors)


async def test_what_is_asked_for_and_missing_is_said_once(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(models, control="none", canary="pets=2:0.5") as running:
        for _ in range(2):
            await running.server.control.rescan()
        assert caplog.text.count("canary of pets: no version or alias 2 of it is served") == 1
        build_version(models, "pets", seed=1)
        await running.server.control.rescan()
        assert running.server.control.problems() == []


async def test_a_canary_that_the_operator_unloads_is_missed(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(models, "pets", seed=1)
    async with (
        running_server(models, control="explicit", canary="pets=1:1") as running,
        AsyncClient(running.address) as client,
    ):
        assert await answering(client) == 1
        await running.server.control.unload_version("pets", "1")
        assert await answering(client) == 2
        assert "canary of pets: no version or alias 1 of it is served" in caplog.text


async def test_a_canary_that_a_look_at_the_repository_takes_away_is_missed(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_version(models, "pets", seed=1)
    Repository(models).promote("pets", 1, "canary")
    async with running_server(models, control="explicit", canary="pets=canary:1") as running:
        (models / "pets/aliases/canary").unlink()
        assert await running.server.control.load_version("pets", "") == (2,)
        assert "canary of pets: no version or alias canary of it is served" in caplog.text


def scalar_input() -> bytes:
    """A graph that ONNX Runtime takes, whose input has no dimensions."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["one"]),
        helper.make_node("Concat", ["one", "one"], ["logits"], axis=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])
        for name in ("probabilities", "logits")
    ]
    graph = helper.make_graph(
        nodes,
        "scalar",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [])],
        outputs,
        [numpy_helper.from_array(np.array([1, 1]), "shape")],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


async def test_a_graph_without_a_batch_dimension_is_refused(models: Path) -> None:
    build_version(models, "pets", model=scalar_input())
    async with running_server(models) as running:
        one, two = running.server.control.states()
    assert (one.state, two.state) == ("serving", "refused")
    assert "with a free batch dimension" in two.reason


# --- the operator's calls


@pytest.fixture
async def admin(models: Path) -> AsyncIterator[tuple[Running, admin_pb2_grpc.AdminServiceStub]]:
    for seed in (1, 2):
        build_version(models, "pets", seed=seed)
    port = free_port()
    async with (
        running_server(models, control="explicit", admin_port=port) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield running, admin_pb2_grpc.AdminServiceStub(channel)


async def test_load_and_unload(admin, models: Path) -> None:
    running, stub = admin
    loaded = await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="1"))
    assert loaded.versions == [1, 3]
    async with AsyncClient(running.address) as client:
        assert await answering(client, 1) == 1
        gone = await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets", version="3"))
        assert gone.versions == [1]
        assert await answering(client) == 1
        with pytest.raises(NotFound):
            await answering(client, 3)
        build_version(models, "pets", seed=7)
        await running.server.control.rescan()  # as SIGHUP does: what was unloaded stays so
        assert await versions(client) == (1, 4)
        await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets"))
        code, _ = await status_of_a_call(running)
        assert code is grpc.StatusCode.NOT_FOUND
        assert await health(running) == health_pb2.HealthCheckResponse.NOT_SERVING
        await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="3"))
    async with AsyncClient(running.address) as client:
        assert await answering(client) == 3
        assert await health(running) == health_pb2.HealthCheckResponse.SERVING


async def test_a_malformed_alias_does_not_stop_a_look_that_the_operator_asks_for(
    admin, models: Path
) -> None:
    running, stub = admin
    build_version(models, "pets", seed=7)
    (models / "pets/aliases").mkdir()
    (models / "pets/aliases/stable").write_text("four")
    found = await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets"))
    assert found.versions == [4]
    assert "alias 'stable' of 'pets' is malformed" in running.server.control.problems()[0]
    (models / "pets/aliases/canary").write_text("1\n")
    found = await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="canary"))
    assert found.versions == [1, 4]


async def test_the_operator_changes_nothing_but_what_is_asked_for(admin, models: Path) -> None:
    running, stub = admin
    build_version(models, "pets", seed=7)
    repository = Repository(models)
    repository.promote("pets", 4)  # published, promoted, and not yet to be served here
    loaded = await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="1"))
    assert loaded.versions == [1, 3]
    await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="2"))
    gone = await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets", version="1"))
    assert gone.versions == [2, 3]
    async with AsyncClient(running.address) as client:
        assert await answering(client) == 3
        repository.promote("pets", 2)
        await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="stable"))
        assert (await answering(client), await answering(client, "stable")) == (2, 2)
        found = await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets"))
        assert found.versions == [2, 4]


async def test_a_model_of_which_all_was_unloaded_is_not_said_to_be_loaded(admin) -> None:
    _, stub = admin
    await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "unloaded: 3; load them by number" in caught.value.details()
    loaded = await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="3"))
    assert loaded.versions == [3]


async def test_an_unloaded_version_that_is_gone_bars_no_other_one_of_its_number(
    admin, models: Path
) -> None:
    running, stub = admin
    await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets", version="3"))
    third, away = models / "pets" / "3", models / "pets" / ".3"
    async with AsyncClient(running.address) as client:
        third.rename(away)
        await running.server.control.rescan()
        assert await versions(client) == (2,)
        away.rename(third)  # the same is there again, such as after a volume was mounted anew
        await running.server.control.rescan()
        assert await versions(client) == (2,)
        shutil.rmtree(third)
        assert build_version(models, "pets", seed=7) == 3
        await running.server.control.rescan()
        assert await versions(client) == (3,)


async def test_what_took_the_number_of_an_unloaded_version_stays_where_its_files_go(
    admin, models: Path
) -> None:
    running, stub = admin
    await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets", version="3"))
    third, away = models / "pets" / "3", models / "pets" / ".3"
    third.rename(away)
    assert build_version(models, "pets", seed=7) == 3
    async with AsyncClient(running.address) as client:
        await running.server.control.rescan()
        shutil.rmtree(third)
        await running.server.control.rescan()
        assert await versions(client) == (3,) and await answering(client) == 3
        answer = (await client.classify([jpeg()], model="pets")).results[0].labels
        away.rename(third)  # the one that was unloaded is there again, and is not served
        await running.server.control.rescan()
        assert (await client.classify([jpeg()], model="pets")).results[0].labels == answer


async def test_a_version_that_is_unloaded_while_it_restarts_bars_no_other_one_of_its_number(
    admin, models: Path
) -> None:
    running, stub = admin
    flip(models / "pets/3/manifest.json")  # so that it can't be made anew
    running.server.control._restart_soon("pets", 3)
    await until_served(running)
    await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets", version="3"))
    for _ in range(2):
        await running.server.control.rescan()
        assert "pets" not in running.server.catalogue.models
        flip(models / "pets/3/manifest.json")  # it is whole again, and stays unloaded
    shutil.rmtree(models / "pets/3")
    assert build_version(models, "pets", seed=7) == 3
    await running.server.control.rescan()
    async with AsyncClient(running.address) as client:
        assert await versions(client) == (3,) and await answering(client) == 3


async def test_an_alias_of_an_unloaded_version_is_said(
    admin, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running, stub = admin
    await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="2"))
    await stub.UnloadModel(admin_pb2.UnloadModelRequest(model="pets", version="3"))
    Repository(models).promote("pets", 3)
    for _ in range(2):
        await running.server.control.rescan()
    said = "the aliases of pets name versions that the operator unloaded: stable (3)"
    assert caplog.text.count(said) == 1 and running.server.control.problems() == [said]
    await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="3"))
    await running.server.control.rescan()
    assert running.server.control.problems() == []
    assert running.server.catalogue.models["pets"].default_version == 3


async def test_a_load_whose_caller_leaves_is_brought_to_its_end(
    admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, stub = admin
    begun, gate = threading.Event(), threading.Event()
    load_engine = model_control.load_engine

    def held(*arguments: object, **options: object) -> object:
        begun.set()
        assert gate.wait(20)
        return load_engine(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model_control, "load_engine", held)
    call = stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="1"))
    ended = asyncio.ensure_future(call.code())
    await until(begun.is_set)
    call.cancel()
    assert await ended is grpc.StatusCode.CANCELLED
    await asyncio.sleep(0.2)  # the server has heard of it
    gate.set()
    await until_served(running, 1, 3)


async def test_the_status_says_what_is_refused_and_why(admin, models: Path) -> None:
    running, stub = admin
    build_version(models, "pets", golden=golden_of(seed=9))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.LoadModel(admin_pb2.LoadModelRequest(model="pets", version="4"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "golden" in caught.value.details()
    status = await stub.GetStatus(admin_pb2.GetStatusRequest())
    assert (status.control, status.policy) == ("explicit", "latest:1")
    found = [(v.version, v.state, v.default, v.device, v.precision) for v in status.versions]
    assert found == [
        (3, admin_pb2.STATE_SERVING, True, "cpu", "fp32"),
        (4, admin_pb2.STATE_REFUSED, False, "", ""),
    ]
    assert "golden" in status.versions[1].reason


@pytest.mark.parametrize(
    "model, version, code",
    [
        ("birds", "", grpc.StatusCode.NOT_FOUND),
        ("pets", "9", grpc.StatusCode.NOT_FOUND),
        ("pets", "nonesuch", grpc.StatusCode.NOT_FOUND),
        ("../pets", "1", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_wrong_call_of_the_operator(
    admin, model: str, version: str, code: grpc.StatusCode
) -> None:
    _, stub = admin
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.LoadModel(admin_pb2.LoadModelRequest(model=model, version=version))
    assert caught.value.code() is code
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UnloadModel(admin_pb2.UnloadModelRequest(model=model, version="9"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def status_of_a_call(running: Running) -> tuple[grpc.StatusCode, str]:
    """Of one attempt: our own client would wait for a server that says it is serving."""
    async with grpc.aio.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await classifier_pb2_grpc.ClassifierServiceStub(channel).Classify(request(jpeg()))
    return caught.value.code(), caught.value.details()


async def health(running: Running) -> int:
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status


# --- an engine that fails


async def test_a_broken_engine_is_made_anew(models: Path) -> None:
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address, timeout_s=5) as client,
    ):
        engine = running.server.catalogue.models["pets"].versions[1].engine
        run = running.server.catalogue.models["pets"].versions[1].batcher._run_model

        def broken(images: np.ndarray, alone: bool) -> None:
            raise MemoryError("CUDA error: out of memory")

        run._run = broken  # as a session does whose device has failed
        for _ in range(FAILURES_IN_A_ROW):
            with pytest.raises(Exception, match="INTERNAL"):
                await answering(client)
        await until(
            lambda: (
                running.server.catalogue.models["pets"].versions.get(1) is not None
                and running.server.catalogue.models["pets"].versions[1].engine is not engine
            )
        )
        assert await answering(client) == 1


async def test_while_no_engine_is_left_the_server_is_not_serving(models: Path) -> None:
    async with running_server(models, control="explicit") as running:
        path = models / "pets/1/model.onnx"
        data = path.read_bytes()
        flip(path)  # so that it can't be made anew
        running.server.control._restart_soon("pets", 1)
        await until(lambda: not running.server.catalogue.can_answer)
        assert await health(running) == health_pb2.HealthCheckResponse.NOT_SERVING
        code, message = await status_of_a_call(running)
        assert code is grpc.StatusCode.UNAVAILABLE and "restarting" in message
        (state,) = running.server.control.states()
        assert state.state == "restarting"
        assert await running.server.control.load_version("pets", "") == ()  # it is on its way
        path.write_bytes(data)
        await until(lambda: running.server.catalogue.can_answer)
        assert await health(running) == health_pb2.HealthCheckResponse.SERVING
        async with AsyncClient(running.address) as client:
            assert await answering(client) == 1


async def test_an_engine_is_no_longer_made_anew_once_the_server_is_closed(models: Path) -> None:
    async with running_server(models, control="explicit") as running:
        flip(models / "pets/1/model.onnx")  # so that it can't be made anew
        running.server.control._restart_soon("pets", 1)
        await until(lambda: not running.server.catalogue.can_answer)
    restarts = [task for task in asyncio.all_tasks() if "_restart" in repr(task)]
    assert not restarts


async def test_a_broken_engine_whose_version_is_gone_makes_room_for_an_older_one(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.1,))
    build_version(models, "pets", seed=1)
    async with (
        running_server(models, control="none", versions="latest:1") as running,
        AsyncClient(running.address) as client,
    ):
        assert await answering(client) == 2
        shutil.rmtree(models / "pets/2")
        running.server.control._restart_soon("pets", 2)
        await until_served(running, 1)
        assert await answering(client) == 1


async def test_a_broken_engine_whose_files_are_damaged_makes_room_until_they_are_mended(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.1,))
    build_version(models, "pets", seed=1)
    async with (
        running_server(models, poll_s=0.1, versions="latest:1") as running,
        AsyncClient(running.address) as client,
    ):
        assert await answering(client) == 2
        path = models / "pets/2/model.onnx"
        data = path.read_bytes()
        flip(path)
        running.server.control._restart_soon("pets", 2)
        await until_served(running, 1)
        assert await answering(client) == 1
        assert [s.state for s in running.server.control.states() if s.version == 2] == ["refused"]
        path.write_bytes(data)
        await until_served(running, 2)
        assert await answering(client) == 2


async def test_a_broken_engine_that_can_not_be_made_anew_says_why_though_the_error_has_no_words(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.05,))
    said = "the engine of pets/1 can't be made anew: MemoryError()"

    def no_memory(*arguments: object) -> None:
        raise MemoryError

    async with running_server(models, control="none") as running:
        with monkeypatch.context() as patch:
            patch.setattr(model_control, "load_version", no_memory)
            running.server.control._restart_soon("pets", 1)
            await until(lambda: said in caplog.messages)
        await until_served(running, 1)


@pytest.mark.parametrize("damaged", [False, True])
async def test_where_no_older_version_can_step_in_a_broken_engine_is_tried_again(
    models: Path, monkeypatch: pytest.MonkeyPatch, *, damaged: bool
) -> None:
    """The files are sound and the device is not; or the repository can't be read either."""
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.05,))
    build_version(models, "pets", seed=1)
    async with (
        running_server(models, poll_s=60.0, versions="latest:1") as running,
        AsyncClient(running.address) as client,
    ):
        path, control = models / "pets/2/model.onnx", running.server.control
        data, tried = path.read_bytes(), []

        def fails(*arguments: object) -> None:
            tried.append(arguments)
            raise BrokenVersion("CUDA failure 2: out of memory")

        def unreadable(*arguments: object) -> None:
            tried.append(arguments)
            raise Unavailable("the bucket does not answer")

        if damaged:
            flip(path)
        with monkeypatch.context() as patch:
            patch.setattr(model_control, "load_version", fails)
            if damaged:
                patch.setattr(model_control, "update_model", unreadable)
            control._restart_soon("pets", 2)
            await until(lambda: len(tried) > 4)
            assert [state.state for state in control.states()] == ["restarting"]
            path.write_bytes(data)
        await until_served(running, 2)
        assert await answering(client) == 2


@pytest.mark.parametrize("newer", [False, True])
async def test_a_broken_engine_whose_files_are_damaged_makes_no_room_for_a_newer_one_or_none(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, newer: bool
) -> None:
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.05,))
    async with running_server(models, poll_s=60.0, versions="latest:1") as running:
        if newer:
            build_version(models, "pets", seed=1)
        path, control = models / "pets/1/model.onnx", running.server.control
        data = path.read_bytes()
        flip(path)
        control._restart_soon("pets", 1)
        await until(lambda: caplog.text.count("the engine of pets/1 can't be made anew") > 2)
        assert [(s.version, s.state) for s in control.states()] == [(1, "restarting")]
        path.write_bytes(data)
        await until_served(running, 1)


async def test_a_broken_engine_whose_version_is_gone_is_gone_for_callers(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.1,))
    build_version(models, "pets", seed=1)
    async with (
        running_server(models, control="none", versions="all") as running,
        AsyncClient(running.address) as client,
    ):
        shutil.rmtree(models / "pets/1")
        running.server.control._restart_soon("pets", 1)
        (restart,) = running.server.control._restarts
        await asyncio.wait_for(restart, 10)
        assert running.server.catalogue.models["pets"].restarting == frozenset()
        with pytest.raises(NotFound):
            await answering(client, 1)


async def test_a_broken_engine_whose_version_was_gone_for_a_moment_runs_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there when it is to be loaded, and there again at the look that follows."""
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.1,))
    async with (
        running_server(models, control="none") as running,
        AsyncClient(running.address) as client,
    ):
        there, away = models / "pets/1", models / "pets/.1"
        update = model_control.update_model

        def come_back_first(*arguments: Any) -> LoadedModel:
            away.rename(there)
            return update(*arguments)

        monkeypatch.setattr(model_control, "update_model", come_back_first)
        there.rename(away)
        running.server.control._restart_soon("pets", 1)
        await until(there.exists)
        await until_served(running, 1)
        assert await answering(client) == 1


async def test_a_broken_engine_whose_model_is_no_longer_wanted_is_let_go(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_control, "RESTART_WAITS_S", (0.1,))
    build_version(models, "birds")
    async with running_server(models, control="none") as running:
        flip(models / "birds/1/model.onnx")  # so that it can't be made anew
        running.server.control._restart_soon("birds", 1)
        (restart,) = running.server.control._restarts
        await until(lambda: not running.server.catalogue.models["birds"].versions)
        await running.server.reconfigure(replace(running.server._settings, only="pets"))
        await asyncio.wait_for(restart, 10)  # raises what it raised
        assert list(running.server.catalogue.models) == ["pets"]
