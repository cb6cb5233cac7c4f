"""In which precision a version is run."""

import functools
from pathlib import Path

from serving.errors import BrokenVersion
from serving.modelspec import Manifest

PRECISIONS = ("auto", "fp32", "int8", "fp16")
CPUINFO = Path("/proc/cpuinfo")
# Instructions that add up products of 8-bit integers: VNNI and AMX on x86, dot products on Arm.
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


def choose_precision(
    manifest: Manifest, wanted: str, device: str, *, cpuinfo: Path = CPUINFO
) -> str:
    """The precision asked for, or for `auto` what the device gains by where the version has it.

    A variant is published only if its measured accuracy passed. Raises BrokenVersion if the version
    has no such variant.
    """
    if wanted == "auto":
        fits = "fp16" if device == "cuda" else "int8" if gains_by_int8(cpuinfo) else "fp32"
        return fits if fits in manifest.variants else "fp32"
    if wanted not in manifest.variants:
        raise BrokenVersion(
            f"{manifest.name}/{manifest.version} has no {wanted} variant, only "
            f"{', '.join(manifest.variants)}; use --precision auto"
        )
    return wanted


@functools.cache
def gains_by_int8(cpuinfo: Path) -> bool:
    """Whether this processor is faster in 8-bit integers than in floats.

    Without such instructions it is not: measured with mobilenet_v2 on an AMD EPYC with AVX2 alone,
    24 to 25 ms a photo in int8 and 20 to 21 in fp32.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # another system than Linux
        return False
    features = (line for line in lines if line.lower().startswith(("flags", "features")))
    return not _DOT_PRODUCTS.isdisjoint(next(features, "").split())
