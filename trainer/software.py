"""Which packages, in which versions, make a version what it is."""

import platform

from trainer.packages import ONNX_RUNTIMES, versions_of
from trainer.timm_nets import PREFIX

_PACKAGES = ("pawprint", "torch", "torchvision", "onnx", "onnxscript", *ONNX_RUNTIMES, "pillow")


def software(backbone: str) -> dict[str, str]:
    extra = ("timm",) if backbone.startswith(PREFIX) else ()
    packages = versions_of((*_PACKAGES, *extra, "numpy", "scipy"))
    return {"python": platform.python_version(), **packages}
