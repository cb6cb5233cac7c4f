"""How a GPU is used; a part of ServerSettings."""

from dataclasses import dataclass

from serving.setting import ON_OFF, check_choice, check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    gpu_memory_mib: int = setting(
        0, "most GPU memory that one version's arena may take, MiB; 0: what it wants"
    )
    cuda_graphs: str = setting("off", "capture the batch sizes that are padded to as CUDA graphs")
    tensorrt: str = setting(
        "",
        "folder in which TensorRT's engines are kept: on CUDA, versions then run on TensorRT, "
        "whose first start takes minutes to build them; empty: without TensorRT",
    )

    def __post_init__(self) -> None:
        check_ranges(self, (("gpu_memory_mib", 0, 1_000_000),))
        check_choice(self, "cuda_graphs", ON_OFF)
