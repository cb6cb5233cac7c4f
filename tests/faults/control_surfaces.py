"""What a server says of itself in all its ways, and what it ought to say: for model_control.py."""

import asyncio
import itertools
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from protos.inference import grpc_service_pb2 as inference_pb
from protos.inference import grpc_service_pb2_grpc
from protos.pawprint.v1 import admin_pb2, admin_pb2_grpc, classifier_pb2_grpc
from protos.pawprint.v1 import classifier_pb2 as pb
from tests.conftest import Running
from tests.faults.control_rules import ALIASES, NAMES, World

REFERENCES = ["", *ALIASES, *map(str, range(1, 11))]
STATES = {
    admin_pb2.STATE_SERVING: "serving",
    admin_pb2.STATE_REFUSED: "refused",
    admin_pb2.STATE_RESTARTING: "restarting",
}


class Surfaces:
    def __init__(self, running: Running, admin_port: int, metrics_port: int) -> None:
        self._server = running.server
        self._channel = grpc.aio.insecure_channel(running.address)
        self._admin_channel = grpc.aio.insecure_channel(f"127.0.0.1:{admin_port}")
        self.admin = admin_pb2_grpc.AdminServiceStub(self._admin_channel)
        self._classifier = classifier_pb2_grpc.ClassifierServiceStub(self._channel)
        self._inference = grpc_service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"

    async def close(self) -> None:
        await self._channel.close()
        await self._admin_channel.close()

    async def read(self) -> dict[str, object]:
        listed = await self._classifier.ListModels(pb.ListModelsRequest())
        status = await self.admin.GetStatus(admin_pb2.GetStatusRequest())
        index = await self._inference.RepositoryIndex(inference_pb.RepositoryIndexRequest())
        health = await self._health.Check(health_pb2.HealthCheckRequest())
        ready = await self._inference.ServerReady(inference_pb.ServerReadyRequest())
        said: dict[str, object] = {
            "ListModels": {
                m.name: ([*m.versions], m.default_version, dict(m.aliases)) for m in listed.models
            },
            "GetStatus": {
                (v.model, v.version): (STATES[v.state], sorted(v.aliases), v.default)
                for v in status.versions
            },
            "reasons": {(v.model, v.version) for v in status.versions if v.reason},
            "control and policy": (status.control, status.policy),
            "RepositoryIndex": [(model.name, int(model.version)) for model in index.models],
            "health": health.status == health_pb2.HealthCheckResponse.SERVING,
            "ServerReady": ready.ready,
            "metrics": await self._read_metrics(),
        }
        for name, reference in itertools.product(NAMES, REFERENCES):
            said |= await self._of(name, reference)
        return said

    async def _of(self, name: str, reference: str) -> dict[str, object]:
        where = f"{name}/{reference or '-'}"
        metadata = inference_pb.ModelReadyRequest(name=name, version=reference)
        described = pb.GetModelRequest(model=name, version=reference)
        said: dict[str, object] = {
            f"ModelReady of {where}": (await self._inference.ModelReady(metadata)).ready
        }
        try:
            got = await self._classifier.GetModel(described)
        except grpc.aio.AioRpcError as error:
            said[f"GetModel of {where}"] = (error.code().name, 0, 0)
        else:
            build = int(got.labels[0].partition("-")[2])
            said[f"GetModel of {where}"] = ("OK", got.version, build)
        return said

    async def _read_metrics(self) -> dict[str, set[tuple[str, ...]]]:
        def read() -> str:
            with urllib.request.urlopen(self._metrics, timeout=10) as page:
                return str(page.read().decode())

        found: dict[str, set[tuple[str, ...]]] = {"loaded": set(), "state": set(), "ready": set()}
        for family in text_string_to_metric_families(await asyncio.to_thread(read)):
            for sample in family.samples:
                labels = sample.labels
                if sample.name == "pawprint_model_loaded":
                    found["loaded"].add((labels["model"], labels["version"], labels["default"]))
                elif sample.name == "pawprint_model_version_state":
                    found["state"].add((labels["model"], labels["version"], labels["state"]))
                elif sample.name in ("pawprint_ready", "pawprint_repository_troubles"):
                    found["ready"].add((sample.name, str(int(sample.value))))
        return found


def due(world: World) -> dict[str, object]:
    """What Surfaces.read ought to find."""
    catalogue = world.catalogue()
    here = any(model.served for model in catalogue.values())
    states = _states(world)
    found: dict[str, object] = {
        "ListModels": {
            name: (sorted(model.served), model.default, model.aliases)
            for name, model in catalogue.items()
        },
        "GetStatus": states,
        "reasons": {key for key, state in states.items() if state[0] == "refused"},
        "control and policy": (world.control, world.versions),
        "RepositoryIndex": sorted((n, v) for n, m in catalogue.items() for v in m.served),
        "health": here,
        "ServerReady": here,
        "metrics": _metrics_of(world),
    }
    for name, reference in itertools.product(NAMES, REFERENCES):
        (outcome,) = world.outcomes(name, reference, None)
        where = f"{name}/{reference or '-'}"
        found[f"ModelReady of {where}"] = outcome[0] == "OK"
        found[f"GetModel of {where}"] = outcome
    return found


def _states(world: World) -> dict[tuple[str, int], tuple[str, list[str], bool]]:
    found = {}
    for name, model in world.models.items():
        for state, versions in (
            ("serving", model.served), ("restarting", model.restarting), ("refused", model.refused)
        ):  # fmt: skip
            for version in versions:
                aliases = sorted(a for a, v in model.aliases.items() if v == version)
                found[name, version] = (state, aliases, version == model.default)
    return found


def _metrics_of(world: World) -> dict[str, set[tuple[str, ...]]]:
    catalogue = world.catalogue()
    here = any(model.served for model in catalogue.values())
    return {
        "loaded": {
            (name, str(version), str(version == model.default).lower())
            for name, model in catalogue.items()
            for version in model.served
        },
        "state": {(n, str(v), state) for (n, v), (state, _, _) in _states(world).items()},
        "ready": {("pawprint_ready", str(int(here))), ("pawprint_repository_troubles", "0")},
    }


def differences(said: dict[str, object], ought: dict[str, object]) -> list[str]:
    return [
        f"{what} says {said[what]}; {ought[what]} was due"
        for what in ought
        if said[what] != ought[what]
    ]
