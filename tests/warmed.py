"""Imported by the process that tests.warm forks from: what a training pays once is paid here.

That is what torch's export and matplotlib import and make ready when they are first used.
"""

import tempfile
from pathlib import Path

import torch

import trainer.analysis.carry_out
import trainer.compare
import trainer.pipeline
import trainer.tune  # noqa: F401
from tests.quick_exports import read_operators_once
from trainer.backbones import TINY, Calibrated, build
from trainer.export import Served, to_onnx
from trainer.figures import line_plot

read_operators_once()
_threads = torch.get_num_threads()
torch.set_num_threads(1)  # others would not be in a process that is forked, and be waited for
to_onnx(Served(Calibrated(build(TINY, 2, 32), 1.0)), 32)
torch.set_num_threads(_threads)
with tempfile.TemporaryDirectory() as _folder, line_plot(Path(_folder) / "line.png") as _axes:
    _axes.plot([0, 1], label="a line")
