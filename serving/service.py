"""ClassifierService: message -> core -> message."""

import time
from collections.abc import Hashable
from typing import Any

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.classification import Classifier
from serving.edge import Call, Edge
from serving.errors import InvalidRequest
from serving.malformed import Parse
from serving.messages import classify_response, get_model_response, list_models_response
from serving.status import Failure
from serving.turns import Priority


class ClassifierService(classifier_pb2_grpc.ClassifierServiceServicer):
    def __init__(self, classifier: Classifier, edge: Edge) -> None:
        self._classifier = classifier
        self._edge = edge

    async def Classify(self, parse: Parse[pb.ClassifyRequest], context: Any) -> pb.ClassifyResponse:
        return await self._edge.answer(context, "Classify", parse, self._classify)

    async def ClassifyStream(self, parse: Parse[pb.ClassifyStreamRequest], context: Any) -> None:
        caller = object()  # one turn for the whole stream

        async def classify(
            request: pb.ClassifyStreamRequest, call: Call
        ) -> pb.ClassifyStreamResponse:
            reply = pb.ClassifyStreamResponse(request_id=request.request_id)
            reply.response.CopyFrom(await self._classify(request.request, call, caller))
            return reply

        def failed(
            request: pb.ClassifyStreamRequest, failure: Failure
        ) -> pb.ClassifyStreamResponse:
            error = pb.RequestError(
                code=failure.code.value[0],
                message=failure.message,
                retry_after_ms=failure.retry_after_ms,
            )
            return pb.ClassifyStreamResponse(request_id=request.request_id, error=error)

        await self._edge.answer_stream(
            *(context, "ClassifyStream", parse, classify, failed),
            priority=lambda request: _priority_of(request.request),
        )

    async def ListModels(
        self, parse: Parse[pb.ListModelsRequest], context: Any
    ) -> pb.ListModelsResponse:
        return await self._edge.answer_at_once(
            context, "ListModels", parse, lambda _: list_models_response(self._edge.catalogue())
        )

    async def GetModel(self, parse: Parse[pb.GetModelRequest], context: Any) -> pb.GetModelResponse:
        def describe(request: pb.GetModelRequest) -> pb.GetModelResponse:
            return get_model_response(self._edge.catalogue().find(request.model, request.version))

        return await self._edge.answer_at_once(context, "GetModel", parse, describe)

    async def _classify(
        self, request: pb.ClassifyRequest, call: Call, caller: Hashable = None
    ) -> pb.ClassifyResponse:
        served = self._edge.catalogue().find(request.model, request.version, request.routing_key)
        call.found(served)
        call.photos = len(request.images)
        priority = _priority_of(request)
        self._edge.rank(call, priority)
        labels = len(served.engine.manifest.labels)
        if not 0 <= request.top_k <= labels:
            raise InvalidRequest(
                f"top_k must be 0 to {labels}, the number of labels; got {request.top_k}"
            )
        call.inferred = await self._classifier.infer(
            served,
            request.images,
            admitted=lambda: self._edge.charge(call),
            deadline=call.deadline,
            caller=call.turn or caller,
            priority=priority,
            streamed=caller is not None,
        )
        total_s = time.monotonic() - call.start
        return classify_response(call.inferred, served, request.top_k, total_s)


def _priority_of(request: pb.ClassifyRequest) -> Priority:
    return Priority.LOW if request.priority == pb.PRIORITY_LOW else Priority.HIGH
