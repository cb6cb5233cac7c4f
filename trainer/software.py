"""Which packages, in which versions, make a version what it is."""

import hashlib
import platform
from pathlib import Path

import PIL

from serving import preprocess
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


def digest_preprocessing() -> str:
    """Of what makes pixels of photos: our code, and Pillow."""
    code = hashlib.sha256(Path(preprocess.__file__).read_bytes())
    code.update(PIL.__version__.encode())
    return code.hexdigest()
