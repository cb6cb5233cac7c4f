"""GRPCInferenceService, the Open Inference Protocol: the same core, limits and versions as ours."""

from collections.abc import Hashable
from importlib.metadata import version as installed
from typing import Any

from protos.inference import grpc_service_pb2 as pb
from protos.inference import grpc_service_pb2_grpc
from serving.classification import Classifier
from serving.edge import Call, Edge
from serving.errors import InvalidImage, InvalidRequest, NotFound, Unavailable
from serving.inference_descriptions import model_config, model_metadata, repository_index
from serving.inference_messages import (
    infer_response,
    photos_of,
    priority_of,
    routing_key_of,
    timeout_of,
    wanted_outputs,
)
from serving.inference_statistics import InferenceStatistics
from serving.malformed import Parse
from serving.status import Failure
from serving.turns import Priority
from serving.typed_pixels import InferRequest, with_typed_pixels

EXTENSIONS = ("classification", "model_configuration", "statistics")


class InferenceService(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(
        self,
        classifier: Classifier,
        edge: Edge,
        statistics: InferenceStatistics,
        max_delay_s: float,
    ) -> None:
        self._classifier = classifier
        self._edge = edge
        self._statistics = statistics
        self._max_delay_s = max_delay_s

    async def ModelInfer(
        self, parse: Parse[pb.ModelInferRequest], context: Any
    ) -> pb.ModelInferResponse:
        return await self._edge.answer(context, "ModelInfer", with_typed_pixels(parse), self._infer)

    async def ModelStreamInfer(self, parse: Parse[pb.ModelInferRequest], context: Any) -> None:
        caller = object()  # one turn for the whole stream

        async def infer(request: InferRequest, call: Call) -> pb.ModelStreamInferResponse:
            answer = await self._infer(request, call, caller)
            return pb.ModelStreamInferResponse(infer_response=answer)

        def failed(request: InferRequest, failure: Failure) -> pb.ModelStreamInferResponse:
            return pb.ModelStreamInferResponse(
                error_message=failure.message,
                infer_response=pb.ModelInferResponse(id=request.message.id),
            )

        def priority(request: InferRequest) -> Priority:
            try:
                return priority_of(request.message)
            except InvalidRequest:  # its answer will say so
                return Priority.HIGH

        await self._edge.answer_stream(
            *(context, "ModelStreamInfer", with_typed_pixels(parse), infer, failed),
            priority=priority,
        )

    async def ServerLive(
        self, parse: Parse[pb.ServerLiveRequest], context: Any
    ) -> pb.ServerLiveResponse:
        return await self._edge.answer_at_once(
            context, "ServerLive", parse, lambda _: pb.ServerLiveResponse(live=True)
        )

    async def ServerReady(
        self, parse: Parse[pb.ServerReadyRequest], context: Any
    ) -> pb.ServerReadyResponse:
        return await self._edge.answer_at_once(
            context, "ServerReady", parse, lambda _: pb.ServerReadyResponse(ready=self._edge.ready)
        )

    async def ModelReady(
        self, parse: Parse[pb.ModelReadyRequest], context: Any
    ) -> pb.ModelReadyResponse:
        def ready(request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
            if not self._edge.ready:
                return pb.ModelReadyResponse(ready=False)
            try:
                self._edge.catalogue().find(request.name, request.version)
            except (NotFound, Unavailable):
                return pb.ModelReadyResponse(ready=False)
            return pb.ModelReadyResponse(ready=True)

        return await self._edge.answer_at_once(context, "ModelReady", parse, ready)

    async def ServerMetadata(
        self, parse: Parse[pb.ServerMetadataRequest], context: Any
    ) -> pb.ServerMetadataResponse:
        return await self._edge.answer_at_once(
            context,
            "ServerMetadata",
            parse,
            lambda _: pb.ServerMetadataResponse(
                name="pawprint", version=installed("pawprint"), extensions=EXTENSIONS
            ),
        )

    async def ModelMetadata(
        self, parse: Parse[pb.ModelMetadataRequest], context: Any
    ) -> pb.ModelMetadataResponse:
        return await self._edge.answer_at_once(
            context,
            "ModelMetadata",
            parse,
            lambda request: model_metadata(self._edge.catalogue(), request.name, request.version),
        )

    async def ModelConfig(
        self, parse: Parse[pb.ModelConfigRequest], context: Any
    ) -> pb.ModelConfigResponse:
        def describe(request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
            served = self._edge.catalogue().find(request.name, request.version)
            config = model_config(served, self._classifier.limits.max_photos, self._max_delay_s)
            return pb.ModelConfigResponse(config=config)

        return await self._edge.answer_at_once(context, "ModelConfig", parse, describe)

    async def ModelStatistics(
        self, parse: Parse[pb.ModelStatisticsRequest], context: Any
    ) -> pb.ModelStatisticsResponse:
        return await self._edge.answer_at_once(
            context,
            "ModelStatistics",
            parse,
            lambda request: self._statistics.response(
                self._edge.catalogue(), request.name, request.version
            ),
        )

    async def RepositoryIndex(
        self, parse: Parse[pb.RepositoryIndexRequest], context: Any
    ) -> pb.RepositoryIndexResponse:
        return await self._edge.answer_at_once(
            context, "RepositoryIndex", parse, lambda _: repository_index(self._edge.catalogue())
        )

    async def _infer(
        self, received: InferRequest, call: Call, caller: Hashable = None
    ) -> pb.ModelInferResponse:
        request = received.message
        served = self._edge.catalogue().find(
            request.model_name, request.model_version, routing_key_of(request)
        )
        call.found(served)
        wanted = wanted_outputs(request, served.engine.outputs)
        side = served.engine.manifest.preprocessing.size
        photos = photos_of(request, received.pixels, side, self._classifier.limits.max_photos)
        call.photos = len(photos)
        deadline = min(call.deadline, call.start + timeout_of(request))
        priority = priority_of(request)
        self._edge.rank(call, priority)
        call.inferred = await self._classifier.infer(
            served,
            photos,
            admitted=lambda: self._edge.charge(call),
            deadline=deadline,
            caller=call.turn or caller,
            priority=priority,
            streamed=caller is not None,
        )
        rows = []
        for index, answer in enumerate(call.inferred.answers):
            if isinstance(answer, InvalidImage):
                raise InvalidImage(f"photo {index} of {len(photos)}, from 0: {answer}")
            rows.append(answer.outputs)
        return infer_response(request, served, wanted, rows)
