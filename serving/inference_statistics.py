"""The statistics extension of the Open Inference Protocol, which perf_analyzer reads."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field

import grpc

from protos.inference import grpc_service_pb2 as pb
from serving.catalogue import Catalogue
from serving.edge import Call


@dataclass
class _Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=round(1e9 * self.seconds))


@dataclass
class _Tally:
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    decode: _Duration = field(default_factory=_Duration)
    inference: _Duration = field(default_factory=_Duration)
    photos: int = 0
    batches: int = 0
    last_ms: int = 0


class InferenceStatistics:
    """`add` is a sink of the edge; `add_batch` belongs to the threads that run batches."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, int], _Tally] = {}

    def keep_only(self, served: Collection[tuple[str, int]]) -> None:
        """Forget all other versions."""
        for key in [key for key in [*self._tallies] if key not in served]:
            del self._tallies[key]

    def add(self, call: Call) -> None:
        if not call.model or not call.photos:
            return
        tally = self._tally(call.model, call.version)
        took = call.end - call.start
        if call.code is not grpc.StatusCode.OK or call.inferred is None:
            tally.fail.add(took)
            return
        tally.success.add(took)
        tally.queue.add(call.inferred.queue_s)
        tally.decode.add(call.inferred.decode_s)
        tally.inference.add(call.inferred.inference_s)
        tally.photos += call.photos
        tally.last_ms = round(1e3 * time.time())

    def add_batch(self, model: str, version: int) -> None:
        self._tally(model, version).batches += 1

    def _tally(self, model: str, version: int) -> _Tally:
        """In one step: several threads may be the first to ask."""
        return self._tallies.setdefault((model, version), _Tally())

    def response(
        self, catalogue: Catalogue, name: str, reference: str
    ) -> pb.ModelStatisticsResponse:
        """name "": all models; reference "": all versions. Raises NotFound."""
        if name and reference:
            chosen = [(name, catalogue.find(name, reference).engine.manifest.version)]
        else:
            if name:
                catalogue.find(name, "")
            chosen = [
                (model, version)
                for model, served in catalogue.models.items()
                if name in ("", model)
                for version in served.versions
            ]
        return pb.ModelStatisticsResponse(
            model_stats=[_message(*key, self._tally(*key)) for key in chosen]
        )


def _message(name: str, version: int, tally: _Tally) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=name,
        version=str(version),
        last_inference=tally.last_ms,
        inference_count=tally.photos,
        execution_count=tally.batches,
        inference_stats=pb.InferStatistics(
            success=tally.success.message(),
            fail=tally.fail.message(),
            queue=tally.queue.message(),
            compute_input=tally.decode.message(),
            compute_infer=tally.inference.message(),
            compute_output=pb.StatisticDuration(count=tally.success.count),
        ),
    )
