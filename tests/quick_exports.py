"""Exports of nets that take tests less time."""

import functools


def read_operators_once() -> None:
    """torch reads the sources of some 500 operators anew for each export, which takes longer than
    the export of a tiny net. To be called once OMP_WAIT_POLICY is set: it imports torch."""
    from torch.onnx._internal._lazy_import import onnxscript_apis

    onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)
