"""Which packages, in which versions, make a version what it is."""

import platform
from importlib.metadata import version as installed

from trainer.timm_nets import PREFIX

_PACKAGES = ("pawprint", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "pillow")


def software(backbone: str) -> dict[str, str]:
    extra = ("timm",) if backbone.startswith(PREFIX) else ()
    packages = {name: installed(name) for name in (*_PACKAGES, *extra, "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}
