"""What is served, as the Open Inference Protocol and Triton's extensions describe it."""

from protos.inference import grpc_service_pb2 as pb
from serving.catalogue import Catalogue, ServedVersion
from serving.modelspec import INPUT, widths_of

PLATFORM = "onnxruntime_onnx"


def model_metadata(catalogue: Catalogue, name: str, reference: str) -> pb.ModelMetadataResponse:
    """Raises NotFound. The input is described as the graph has it; BYTES is taken as well."""
    manifest = catalogue.find(name, reference).engine.manifest
    side = manifest.preprocessing.size
    Tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=name,
        versions=[str(version) for version in catalogue.models[name].versions],
        platform=PLATFORM,
        inputs=[Tensor(name=INPUT, datatype="UINT8", shape=[-1, side, side, 3])],
        outputs=[
            Tensor(name=output, datatype="FP32", shape=[-1, width])
            for output, width in widths_of(manifest).items()
        ],
    )


def model_config(served: ServedVersion, max_photos: int, max_delay_s: float) -> pb.ModelConfig:
    manifest = served.engine.manifest
    side = manifest.preprocessing.size
    return pb.ModelConfig(
        name=manifest.name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=max_photos,
        input=[pb.ModelInput(name=INPUT, data_type=pb.TYPE_UINT8, dims=[side, side, 3])],
        output=[
            pb.ModelOutput(name=output, data_type=pb.TYPE_FP32, dims=[width])
            for output, width in widths_of(manifest).items()
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            max_queue_delay_microseconds=round(1e6 * max_delay_s)
        ),
    )


def repository_index(catalogue: Catalogue) -> pb.RepositoryIndexResponse:
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(name=name, version=str(version), state="READY")
            for name, model in catalogue.models.items()
            for version in model.versions
        ]
    )
