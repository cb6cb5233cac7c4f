"""`models load | unload | status`: what operators ask of a running server's AdminService."""

import argparse
import json
from typing import Any

import grpc

from protos.pawprint.v1 import admin_pb2 as pb
from protos.pawprint.v1 import admin_pb2_grpc
from serving.access import channel_opener
from serving.client_messages import exception_of_call
from serving.commandline import aligned
from serving.errors import in_utf8
from serving.layout import name_and_version

# Loading a large version takes long; a server that is not there is known at once.
TIMEOUT_S = 600.0
_NO_CONNECTION = "failed to connect to all addresses"  # of gRPC's pick_first


def load(options: argparse.Namespace) -> None:
    name, version = name_and_version(in_utf8("the model", options.model))
    answer = _call(options, "LoadModel", pb.LoadModelRequest(model=name, version=version))
    _report(options, name, answer.versions)


def unload(options: argparse.Namespace) -> None:
    name, version = name_and_version(in_utf8("the model", options.model))
    answer = _call(options, "UnloadModel", pb.UnloadModelRequest(model=name, version=version))
    _report(options, name, answer.versions)


def status(options: argparse.Namespace) -> None:
    answer = _call(options, "GetStatus", pb.GetStatusRequest())
    rows = [
        {
            "name": version.model,
            "version": version.version,
            "state": pb.State.Name(version.state).removeprefix("STATE_").lower(),
            "aliases": list(version.aliases),
            "default": version.default,
            "device": version.device,
            "precision": version.precision,
            "reason": version.reason,
        }
        for version in answer.versions
    ]
    if options.json:
        whole = {"control": answer.control, "policy": answer.policy, "versions": rows}
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    lines: list[tuple[object, ...]] = [
        ("MODEL", "VERSION", "STATE", "ALIASES", "DEVICE", "PRECISION", "REASON")
    ]
    for row in rows:
        state = f"{row['state']}{', default' if row['default'] else ''}"
        aliases = " ".join(row["aliases"])
        where = (row["device"], row["precision"])
        lines.append((row["name"], row["version"], state, aliases, *where, row["reason"]))
    print(aligned(lines))


def _report(options: argparse.Namespace, name: str, versions: Any) -> None:
    if options.json:
        print(json.dumps({"name": name, "versions": list(versions)}))
    else:
        print(f"loaded of {name}: {', '.join(map(str, versions)) or 'none'}")


def _call(options: argparse.Namespace, method: str, request: Any) -> Any:
    """Raises the exception of a failed call."""
    with channel_opener(options.server, tls=None, options=())() as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        try:
            return getattr(stub, method)(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raised = exception_of_call(error, options.server)
            unknown = error.code() is grpc.StatusCode.UNIMPLEMENTED
            if unknown or _NO_CONNECTION in str(raised):  # perhaps it is the port of the calls
                raised = type(raised)(f"{raised}; --server wants the port of serve --admin-port")
            raise raised from None
