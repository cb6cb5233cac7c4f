"""The verdict of a running server on pictures, as any caller would get it."""

from collections.abc import Sequence

import grpc

from protos.pawprint.v1 import classifier_pb2, classifier_pb2_grpc
from serving.errors import PawprintError

_TIMEOUT_S = 60.0


class ServerFailed(PawprintError):
    """The server can't be reached, or refuses."""


def ask_server(
    address: str, name: str, version: int, pngs: Sequence[bytes]
) -> list[tuple[str, float]]:
    """(label, probability) for each picture. Raises ServerFailed."""
    answers = []
    try:
        with grpc.insecure_channel(address) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            for png in pngs:
                request = classifier_pb2.ClassifyRequest(
                    model=name, version=str(version), images=[png], top_k=1
                )
                result = stub.Classify(request, timeout=_TIMEOUT_S).results[0]
                if result.HasField("error"):
                    raise ServerFailed(f"{address} refuses a picture: {result.error.message}")
                best = result.classification.labels[0]
                answers.append((best.name, best.probability))
    except grpc.RpcError as error:
        raise ServerFailed(
            f"{address} does not answer for {name}/{version}: {error.code().name}, "
            f"{error.details()}"
        ) from error
    return answers
