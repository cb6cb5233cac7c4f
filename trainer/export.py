"""A classifier to one ONNX file: pixels in as bytes, probabilities and logits out."""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import nn

from serving.errors import first_line
from serving.modelspec import INPUT, OUTPUTS
from trainer.backbones import Calibrated
from trainer.errors import FailedCheck
from trainer.folding import folded

OPSET = 20

_CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class Served(nn.Module):
    """uint8 [n, S, S, 3] -> probabilities, logits: all that a server would else have to know."""

    def __init__(self, calibrated: Calibrated) -> None:
        super().__init__()
        self.calibrated = calibrated

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.calibrated(image.permute(0, 3, 1, 2).float() / 255)
        return torch.softmax(logits, dim=1), logits


def to_onnx(served: Served, size: int) -> onnx.ModelProto:
    """The graph of `served`, on the CPU and in eval mode, checked with onnx's checker.

    Batch norms are folded beforehand: the exporter would do so too, only slower. Raises FailedCheck
    if it can't be exported.
    """
    net = folded(served).to(memory_format=torch.contiguous_format)
    _clamp_relu6(net)
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    chatter = io.StringIO()
    try:
        with _quiet(chatter), _old_objects_left_alone():
            program = torch.onnx.export(
                net,
                (example,),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            )
        assert program is not None  # as it is without dynamo
        model: onnx.ModelProto = program.model_proto
    except torch.onnx.OnnxExporterError as error:
        raise FailedCheck(f"the net can't be exported to ONNX: {first_line(error)}") from error
    _strip_metadata(model)
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if opsets.get("") != OPSET or batch != "batch":
        raise FailedCheck(
            f"exported with opset {opsets.get('')} and batch {batch!r}; expected {OPSET}, 'batch'"
        )
    return model


class _Clamp6(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, 0, 6)


def _clamp_relu6(net: nn.Module) -> None:
    """Replace each ReLU6 by the clamp that it is.

    ONNX has no ReLU6, so the exporter decomposes each one under a symbolic batch: a third of the
    export's time with MobileNetV2's 35. A clamp it takes as it is; the graph comes out the same.
    """
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.ReLU6:
                setattr(parent, name, _Clamp6())


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes on each node: stack traces with paths of this machine."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Spare the garbage collector what is there already, torch's modules above all.

    The exporter makes so many objects that it would look through all of them again and again: a
    quarter of the export's time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _quiet(chatter: io.StringIO) -> Iterator[None]:
    """Keep the exporter's progress and its notes on its own innards from the terminal."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(chatter),
            contextlib.redirect_stderr(chatter),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
