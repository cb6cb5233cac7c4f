"""Prometheus metrics of a server. docs/observability.md lists them.

Labels are bounded: a model or version is named only once it was found, methods and codes are few.
The children of each metric are bound once: a call costs a few increments.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.batching import Answer
from serving.catalogue import ServedVersion
from serving.edge import Call, Edge
from serving.gpu_memory import gpu_memory
from serving.log_output import lines_dropped
from serving.shadowing import OUTCOMES
from serving.troubles import Troubles
from serving.version_state import VersionState

UNKNOWN = "unknown"
# Each about twice the last: from a bare inference to a caller's patience.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0)
PHOTOS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
STAGES = ("decode", "queue", "inference")
VERSION = ("model", "version")
# Photos by model, the version that answered, its shadow, and the outcome: see Shadowing.
ShadowCounts = Mapping[tuple[str, int, int, str], int]


@dataclass(frozen=True, slots=True)
class _Version:
    """The children of one version's metrics."""

    photos: Counter
    sureness: Histogram
    decode: Histogram
    queue: Histogram
    inference: Histogram


class Metrics:
    """`observe` is a sink of the edge; `observe_batch` belongs to the thread that runs batches."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self._calls = Counter(
            "pawprint_calls",
            "Calls answered, each request of a stream counting as one",
            ("method", *VERSION, "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "pawprint_call_seconds",
            "From the receipt of a message to its answer",
            ("method", *VERSION),
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "pawprint_stage_seconds",
            "Decoding (summed over the photos of a call), waiting for a batch, running it",
            (*VERSION, "stage"),
            buckets=SECONDS,
            registry=registry,
        )
        self._photos = Counter("pawprint_photos", "Photos answered", VERSION, registry=registry)
        self._sureness = Histogram(
            "pawprint_top_probability",
            "Of the most probable label of each photo classified",
            VERSION,
            buckets=PROBABILITIES,
            registry=registry,
        )
        self._unfamiliar = Counter(
            "pawprint_unfamiliar_photos",
            "Of the photos classified, those that are unlike all that the version has learnt from",
            VERSION,
            registry=registry,
        )
        self._batches = Histogram(
            "pawprint_batch_photos", "Photos in a batch", VERSION, buckets=PHOTOS, registry=registry
        )
        self._batch_seconds = Histogram(
            "pawprint_batch_seconds",
            "Running a batch",
            VERSION,
            buckets=SECONDS,
            registry=registry,
        )
        self._states = Gauge(
            "pawprint_model_version_state",
            "1 for each version that was tried: serving, refused or restarting",
            (*VERSION, "state"),
            registry=registry,
        )
        self._failures = Counter(
            "pawprint_model_load_failures",
            "Versions refused when they were to be loaded",
            ("model",),
            registry=registry,
        )
        self._refused_before: set[tuple[str, int, str]] = set()
        self._bound_calls: dict[tuple[str, str, int, str], tuple[Counter, Histogram]] = {}
        self._bound_versions: dict[tuple[str, int], _Version] = {}
        self._bound_unfamiliar: dict[tuple[str, int], Counter] = {}
        self._bound_batches: dict[tuple[str, int], tuple[Histogram, Histogram]] = {}
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    def watch(self, edge: Edge, shadow_counts: ShadowCounts, troubles: Troubles) -> None:
        """Read what is loaded, how much waits, how shadows agree and what stands against reading
        the repository whenever a scrape comes."""
        self.registry.register(_Readings(edge, shadow_counts, troubles))

    def watch_certificate(self, ends: Callable[[], float]) -> None:
        """ends: when the server's certificate expires, in seconds since 1970."""
        Gauge(
            "pawprint_certificate_expiry_timestamp_seconds",
            "When the certificate that callers are shown expires",
            registry=self.registry,
        ).set_function(ends)

    def set_states(self, states: Sequence[VersionState]) -> None:
        """What has become of the versions of the repository."""
        refused = {(s.model, s.version, s.reason) for s in states if s.state == "refused"}
        for state in states:  # from 0, or Prometheus would see no increase in the first
            self._failures.labels(state.model)
        for model, _, _ in refused - self._refused_before:
            self._failures.labels(model).inc()
        self._refused_before = refused
        self._states.clear()
        for state in states:
            self._states.labels(state.model, str(state.version), state.state).set(1)

    def keep_only(self, served: Collection[tuple[str, int]]) -> None:
        """Forget all other versions, else a server would keep the series of every one it ever had.

        Calls that still end on one that was let go are forgotten at the next change.
        """
        for call in [c for c in self._bound_calls if c[1] and (c[1], c[2]) not in served]:
            method, model, version, code = call
            del self._bound_calls[call]
            self._calls.remove(method, model, str(version), code)
            self._seconds.remove(method, model, str(version))  # which its codes share
        for model, version in [key for key in self._bound_versions if key not in served]:
            del self._bound_versions[model, version]
            for stage in STAGES:
                self._stages.remove(model, str(version), stage)
            self._photos.remove(model, str(version))
            self._sureness.remove(model, str(version))
        for model, version in [key for key in self._bound_unfamiliar if key not in served]:
            del self._bound_unfamiliar[model, version]
            self._unfamiliar.remove(model, str(version))
        for model, version in [key for key in [*self._bound_batches] if key not in served]:
            del self._bound_batches[model, version]
            self._batches.remove(model, str(version))
            self._batch_seconds.remove(model, str(version))

    def observe(self, call: Call) -> None:
        key = (call.method, call.model, call.version, call.code.name)
        bound = self._bound_calls.get(key)
        if bound is None:
            bound = self._bound_calls[key] = self._bind_call(*key)
        bound[0].inc()
        bound[1].observe(call.end - call.start)
        if call.inferred is not None:
            version = self._bound_versions.get((call.model, call.version))
            if version is None:
                version = self._bind_version(call.model, call.version)
            if call.code is grpc.StatusCode.OK:
                version.photos.inc(call.photos)
                for answer in call.inferred.answers:
                    if isinstance(answer, Answer):
                        version.sureness.observe(float(answer.outputs[0].max()))
                if call.inferred.unfamiliar is not None:
                    self._count_unfamiliar(call.model, call.version, call.inferred.unfamiliar)
            version.decode.observe(call.inferred.decode_s)
            version.queue.observe(call.inferred.queue_s)
            version.inference.observe(call.inferred.inference_s)

    def _count_unfamiliar(self, model: str, version: int, photos: int) -> None:
        bound = self._bound_unfamiliar.get((model, version))
        if bound is None:
            bound = self._unfamiliar.labels(model, str(version))
            self._bound_unfamiliar[model, version] = bound
        bound.inc(photos)

    def observe_batch(self, model: str, version: int, photos: int, seconds: float) -> None:
        bound = self._bound_batches.get((model, version))
        if bound is None:
            labels = (model, str(version))
            bound = self._batches.labels(*labels), self._batch_seconds.labels(*labels)
            self._bound_batches[model, version] = bound
        bound[0].observe(photos)
        bound[1].observe(seconds)

    def _bind_call(
        self, method: str, model: str, version: int, code: str
    ) -> tuple[Counter, Histogram]:
        labels = (method, model or UNKNOWN, str(version) if model else UNKNOWN)
        return self._calls.labels(*labels, code), self._seconds.labels(*labels)

    def _bind_version(self, model: str, version: int) -> _Version:
        labels = (model, str(version))
        stages = {stage: self._stages.labels(*labels, stage) for stage in STAGES}
        bound = _Version(
            photos=self._photos.labels(*labels), sureness=self._sureness.labels(*labels), **stages
        )
        self._bound_versions[model, version] = bound
        return bound


class _Readings(Collector):
    """Gauges that are read, not kept."""

    def __init__(self, edge: Edge, shadow_counts: ShadowCounts, troubles: Troubles) -> None:
        self._edge = edge
        self._shadow_counts = shadow_counts
        self._troubles = troubles

    def describe(self) -> Iterator[Metric]:
        return iter(())  # else the registry would collect to learn the names

    def collect(self) -> Iterator[Metric]:
        catalogue = self._edge.serving
        yield GaugeMetricFamily(
            "pawprint_ready", "1 while calls are taken", value=float(self._edge.ready)
        )
        yield GaugeMetricFamily(
            "pawprint_calls_in_flight", "Calls being answered", value=self._edge.active
        )
        yield CounterMetricFamily(
            "pawprint_log_lines_dropped",
            "Lines of the log that stderr did not take",
            value=lines_dropped(),
        )
        if self._troubles.last_look:  # a server that still waits for the first has no age to show
            yield GaugeMetricFamily(
                "pawprint_repository_last_look_timestamp_seconds",
                "When the repository was last read; every poll_s while it is watched, if it can be",
                value=self._troubles.last_look,
            )
        yield GaugeMetricFamily(
            "pawprint_repository_troubles",
            "Models that can't be read now, and 1 if the repository can't be",
            value=len(self._troubles.texts),
        )
        versions: list[tuple[str, int, ServedVersion]] = [
            (name, version, served)
            for name, model in (catalogue.models.items() if catalogue else ())
            for version, served in model.versions.items()
        ]
        loaded = GaugeMetricFamily(
            "pawprint_model_loaded",
            "1 for each version that is loaded; default: it answers calls that name none",
            labels=(*VERSION, "precision", "device", "default"),
        )
        waiting = GaugeMetricFamily(
            "pawprint_queue_photos", "Decoded photos that wait for a batch", labels=VERSION
        )
        admitted = GaugeMetricFamily(
            "pawprint_photos_in_flight", "Photos admitted and not yet answered", labels=VERSION
        )
        accuracy = GaugeMetricFamily(
            "pawprint_model_accuracy",
            "On the test photos when it was published, in the precision that is loaded",
            labels=VERSION,
        )
        calibration = GaugeMetricFamily(
            "pawprint_model_calibration_error",
            "On the same photos: how far probabilities and accuracy lie apart (ECE)",
            labels=VERSION,
        )
        unfamiliar = GaugeMetricFamily(
            "pawprint_model_unfamiliar_share",
            "Of the test photos, those that are unfamiliar to it in the precision that is loaded",
            labels=VERSION,
        )
        for name, version, served in versions:
            labels = (name, str(version))
            default = catalogue is not None and catalogue.models[name].default_version == version
            engine = served.engine
            loaded.add_metric((*labels, engine.precision, engine.device, str(default).lower()), 1)
            waiting.add_metric(labels, served.batcher.waiting)
            admitted.add_metric(labels, served.batcher.admitted)
            measured = engine.manifest.variants[engine.precision].metrics
            accuracy.add_metric(labels, measured.accuracy)
            calibration.add_metric(labels, measured.ece)
            known = engine.familiarity
            if known is not None and engine.precision in known.unfamiliar:
                unfamiliar.add_metric(labels, known.unfamiliar[engine.precision])
        yield from (loaded, waiting, admitted, accuracy, calibration, unfamiliar)
        shadows = CounterMetricFamily(
            "pawprint_shadow_photos",
            "Photos of copied calls: whether the shadow's first label was the one answered",
            labels=(*VERSION, "shadow_version", "outcome"),
        )
        counts = dict(self._shadow_counts)
        for name, version, shadow in dict.fromkeys(key[:3] for key in counts):
            for outcome in OUTCOMES:  # from 0, or one that never agrees would have no share at all
                photos = counts.get((name, version, shadow, outcome), 0)
                shadows.add_metric((name, str(version), str(shadow), outcome), photos)
        yield shadows
        memory = gpu_memory()
        if memory is not None:
            gauge = GaugeMetricFamily(
                "pawprint_gpu_memory_bytes", "Memory of each GPU", labels=("gpu", "kind")
            )
            for index, (used, total) in enumerate(memory):
                gauge.add_metric((str(index), "used"), used)
                gauge.add_metric((str(index), "total"), total)
            yield gauge
