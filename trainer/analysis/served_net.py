"""A net for attacks that only ask: its answers are those of the served file."""

import functools
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trainer.onnx_runner import OnnxRunner


class ServedNet(nn.Module):
    """Answers in half of the time that the net takes, and has no gradient.

    Takes images float32 [n, 3, S, S] in [0, 1] on the CPU, between the 256 levels of a picture too;
    returns logits [n, K].
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        """read: for the served file, when it is asked for the first time."""
        super().__init__()
        self._runner = functools.cache(lambda: OnnxRunner(_of_floats(read()), ("logits",)))

    def forward(self, images: Tensor) -> Tensor:
        levels = (255 * images).permute(0, 2, 3, 1)
        return torch.from_numpy(self._runner().run(np.ascontiguousarray(levels.numpy()))[0])


def _of_floats(file: bytes) -> bytes:
    """The graph with floats in [0, 255] as its input, of which it made floats first of all."""
    model = onnx.load_from_string(file)
    (picture,) = model.graph.input
    picture.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del model.graph.value_info[:]  # the types in between follow from it
    return bytes(model.SerializeToString())
