"""Which packages, in which versions, make a version what it is."""

import hashlib
import platform
from pathlib import Path

from serving import preprocess
from trainer.packages import ONNX_RUNTIMES, versions_of
from trainer.timm_nets import PREFIX

_PACKAGES = ("pawprint", "torch", "torchvision", "onnx", "onnxscript", *ONNX_RUNTIMES, "pillow")


def software(backbone: str) -> dict[str, str]:
    """Python and the packages, with their versions; timm for a backbone of its own alone."""
    extra = ("timm",) if backbone.startswith(PREFIX) else ()
    packages = versions_of((*_PACKAGES, *extra, "numpy", "scipy"))
    return {"python": platform.python_version(), **packages}


def digest_code() -> str:
    """Of our own that makes a version, and pixels of photos. It changes between releases too, while
    their version does not."""
    code = hashlib.sha256(Path(preprocess.__file__).read_bytes())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def this_pawprint() -> str:
    """For who reads that another has begun something."""
    release = versions_of(["pawprint"]).get("pawprint", "unreleased")
    return f"{release}, code {digest_code()[:8]}"
