"""How a GPU is used; a part of ServerSettings."""

from dataclasses import dataclass

from serving.setting import ON_OFF, check_choice, check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    gpu_memory_mib: int = setting(
        0, "most GPU memory that one version's arena may take, MiB; 0: no limit"
    )
    cuda_graphs: str = setting("off", "run each padded batch size as a captured CUDA graph")
    tensorrt: str = setting(
        "",
        "run versions on TensorRT, on CUDA, and keep its engines in this folder; to build them at "
        "the first start takes minutes; empty: no TensorRT",
    )

    def __post_init__(self) -> None:
        check_ranges(self, (("gpu_memory_mib", 0, 1_000_000),))
        check_choice(self, "cuda_graphs", ON_OFF)
