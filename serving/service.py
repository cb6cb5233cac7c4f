"""ClassifierService: message -> core -> message."""

import time
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Any, TypeVar

from protos.pawprint.v1 import classifier_pb2 as pb
from protos.pawprint.v1 import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.classification import Classifier
from serving.edge import Call, Edge
from serving.messages import classify_response, get_model_response, list_models_response
from serving.status import Failure
from serving.turns import Priority

T = TypeVar("T")

PRIORITIES = {pb.PRIORITY_LOW: Priority.LOW}


class ClassifierService(classifier_pb2_grpc.ClassifierServiceServicer):
    def __init__(self, classifier: Classifier, edge: Edge) -> None:
        self._classifier = classifier
        self._edge = edge

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        return await self._edge.answer(
            context, "Classify", lambda call: self._classify(request, call)
        )

    async def ClassifyStream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], context: Any
    ) -> None:
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

        await self._edge.answer_stream(context, "ClassifyStream", classify, failed)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        return await self._described(context, "ListModels", list_models_response)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return await self._described(
            context,
            "GetModel",
            lambda catalogue: get_model_response(catalogue.find(request.model, request.version)),
        )

    async def _classify(
        self, request: pb.ClassifyRequest, call: Call, caller: Hashable = None
    ) -> pb.ClassifyResponse:
        self._edge.check_size(request)
        served = self._edge.catalogue().find(request.model, request.version, request.routing_key)
        call.found(served)
        self._edge.charge(call, len(request.images))
        classified = await self._classifier.classify(
            served,
            request.images,
            top_k=request.top_k,
            deadline=call.deadline,
            caller=call.turn or caller,
            priority=PRIORITIES.get(request.priority, Priority.HIGH),
        )
        call.inferred = classified.inferred
        return classify_response(classified, served, time.monotonic() - call.start)

    async def _described(self, context: Any, method: str, describe: Callable[[Catalogue], T]) -> T:
        async def work(call: Call) -> T:
            return describe(self._edge.catalogue())

        return await self._edge.answer(context, method, work)
