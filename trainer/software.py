"""Which packages, in which versions, make a version what it is."""

import hashlib
import platform
from pathlib import Path

from trainer.packages import ONNX_RUNTIMES, versions_of
from trainer.timm_nets import PREFIX

_PACKAGES = ("pawprint", "torch", "torchvision", "onnx", "onnxscript", *ONNX_RUNTIMES, "pillow")


def software(backbone: str) -> dict[str, str]:
    extra = ("timm",) if backbone.startswith(PREFIX) else ()
    packages = versions_of((*_PACKAGES, *extra, "numpy", "scipy"))
    return {"python": platform.python_version(), **packages}


def digest_code() -> str:
    """Of the trainer's own, which changes between releases too, while its version does not."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()
