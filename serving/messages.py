"""Values of the core to messages of the protocol."""

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.batching import Answer
from serving.catalogue import Catalogue, ServedVersion
from serving.classification import Inferred, best_labels, familiarity_of
from serving.errors import InvalidImage
from serving.modelspec import Familiarity, RobustnessSummary, Trust


def classify_response(
    inferred: Inferred, served: ServedVersion, top_k: int, total_s: float
) -> pb.ClassifyResponse:
    """top_k: 0 means 1."""
    return pb.ClassifyResponse(
        results=[_image_result(answer, served, top_k or 1) for answer in inferred.answers],
        model=served.engine.manifest.name,
        version=served.engine.manifest.version,
        timings=pb.Timings(
            decode_ms=1e3 * inferred.decode_s,
            queue_ms=1e3 * inferred.queue_s,
            inference_ms=1e3 * inferred.inference_s,
            total_ms=1e3 * total_s,
        ),
    )


def _image_result(
    answer: Answer | InvalidImage, served: ServedVersion, top_k: int
) -> pb.ImageResult:
    if isinstance(answer, InvalidImage):
        return pb.ImageResult(error=pb.ImageError(message=str(answer)))
    engine = served.engine
    found = pb.Classification(
        labels=[
            pb.Label(name=label.name, index=label.index, probability=label.probability)
            for label in best_labels(answer.outputs[0], engine.manifest.labels, top_k)
        ]
    )
    if engine.familiarity is not None:
        found.familiarity = familiarity_of(answer)
        found.unfamiliar = engine.familiarity.tells(found.familiarity)
    return pb.ImageResult(classification=found)


def list_models_response(catalogue: Catalogue) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(
        models=[
            pb.Model(
                name=model.name,
                versions=list(model.versions),
                default_version=model.default_version,
                aliases=dict(model.aliases),
            )
            for model in catalogue.models.values()
        ]
    )


def get_model_response(served: ServedVersion) -> pb.GetModelResponse:
    manifest = served.engine.manifest
    metrics = manifest.variants[served.engine.precision].metrics
    findings = served.findings
    return pb.GetModelResponse(
        model=manifest.name,
        version=manifest.version,
        labels=manifest.labels,
        input_size=manifest.preprocessing.size,
        backbone=manifest.backbone,
        created=manifest.created,
        precision=served.engine.precision,
        metrics=pb.Metrics(
            photos=metrics.photos,
            accuracy=metrics.accuracy,
            accuracy_low=metrics.accuracy_low,
            accuracy_high=metrics.accuracy_high,
            expected_calibration_error=metrics.ece,
        ),
        digests={file: entry.sha256 for file, entry in manifest.files.items()},
        robustness=None if findings is None else _robustness(findings.robustness),
        trust=None if findings is None else _trust(findings.trust, served.engine.precision),
        familiarity=_familiarity(served.engine.familiarity, served.engine.precision),
    )


def _trust(trust: Trust | None, precision: str) -> pb.Trust | None:
    if trust is None:
        return None
    return pb.Trust(
        photos=trust.photos,
        confidence=trust.confidence,
        thresholds=[
            pb.Threshold(accuracy=t.accuracy, probability=t.probability, answered=t.answered)
            for t in trust.thresholds
            if t.precision == precision
        ],
    )


def _robustness(summary: RobustnessSummary) -> pb.RobustnessSummary:
    return pb.RobustnessSummary(
        photos=summary.photos,
        clean_accuracy=summary.clean_accuracy,
        robust_accuracy=[
            pb.RobustAccuracy(norm=r.norm, epsilon=r.epsilon, accuracy=r.accuracy)
            for r in summary.robust_accuracy
        ],
        corruption_accuracy=summary.corruption_accuracy,
        created=summary.created,
    )


def _familiarity(familiarity: Familiarity | None, precision: str) -> pb.Familiarity | None:
    if familiarity is None:
        return None
    return pb.Familiarity(
        photos=familiarity.photos,
        threshold=familiarity.threshold,
        unfamiliar=familiarity.unfamiliar.get(precision),
    )
