"""The execution providers of ONNX Runtime that a session on a GPU is given, and their options."""

from collections.abc import Sequence
from pathlib import Path

from serving.gpu_settings import GpuSettings
from serving.modelspec import INPUT, Manifest

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
Provider = tuple[str, dict[str, str]]


def engine_folder(gpu: GpuSettings, manifest: Manifest, precision: str) -> Path:
    """Where TensorRT keeps its engine, which belongs to the very file that it was built from."""
    file = manifest.variants[precision].file
    return Path(gpu.tensorrt) / manifest.files[file].sha256


def gpu_providers(
    gpu: GpuSettings, manifest: Manifest, precision: str, sizes: Sequence[int]
) -> list[Provider]:
    """Most wanted first; what none of them takes runs on the CPU. sizes: of batches, ascending.

    Options: onnxruntime.ai, "CUDA Execution Provider" and "TensorRT Execution Provider".
    """
    graphs = str(int(gpu.cuda_graphs == "on"))
    cuda = {
        # TF32 keeps 10 bits of the mantissa: its logits are not those that the manifest vouches
        # for. The exhaustive search of convolutions would time every one for every batch size.
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        # Doubling would hold up to twice the memory that the largest batch needs.
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": graphs,
    }
    if gpu.gpu_memory_mib:
        cuda["gpu_mem_limit"] = str(gpu.gpu_memory_mib * 2**20)
    if not gpu.tensorrt:
        return [(CUDA, cuda)]
    side = manifest.preprocessing.size
    tensorrt = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engine_folder(gpu, manifest, precision)),
        "trt_timing_cache_enable": "1",
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_cuda_graph_enable": graphs,
    }
    for which, size in (("min", sizes[0]), ("opt", sizes[-1]), ("max", sizes[-1])):
        tensorrt[f"trt_profile_{which}_shapes"] = f"{INPUT}:{size}x{side}x{side}x3"
    # Graphs of CUDA's own would be captured around engines that capture theirs.
    return [(TENSORRT, tensorrt), (CUDA, cuda | {"enable_cuda_graph": "0"})]
