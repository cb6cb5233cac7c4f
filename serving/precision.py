"""In which precision a version is run."""

from serving.errors import BrokenVersion
from serving.modelspec import Manifest

PRECISIONS = ("auto", "fp32", "int8", "fp16")
# What a device gains by. A variant is published only if its measured accuracy passed.
PREFERRED = {"cpu": "int8", "cuda": "fp16"}


def choose_precision(manifest: Manifest, wanted: str, device: str) -> str:
    """The precision asked for, or for `auto` the device's preferred one where the version has it.

    Raises BrokenVersion if the version has no such variant.
    """
    if wanted == "auto":
        return PREFERRED[device] if PREFERRED[device] in manifest.variants else "fp32"
    if wanted not in manifest.variants:
        raise BrokenVersion(
            f"{manifest.name}/{manifest.version} has no {wanted} variant, only "
            f"{', '.join(manifest.variants)}; use --precision auto"
        )
    return wanted
