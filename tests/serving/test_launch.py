"""Commands in an installation that lacks what they need."""

import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("serve", "onnxruntime", "serve"),
        ("analyze", "torch", "train"),
        ("classify", "grpc", "client"),
        ("models", "grpc", "client"),
    ],
)
def test_a_package_that_is_missing_is_one_line(command: str, package: str, extra: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; sys.argv = ['{command}', '--help']\n"
    code += f"from serving.launch import {command}; sys.exit({command}())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this needs the package {package}; install the extra {extra} of Pawprint from its "
        f"folder or wheel: pip install '.[{extra}]'\n"
    )


@pytest.mark.parametrize(
    ("command", "package"), [("serve", "numpy"), ("analyze", "torch"), ("classify", "grpc")]
)
def test_ctrl_c_while_packages_are_imported_says_nothing(command: str, package: str) -> None:
    code = f"""
import os, signal, sys
class CtrlC:
    def find_spec(self, name, *_):
        if name == "{package}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
sys.argv = ["{command}", "--help"]
from serving.launch import {command}
sys.exit({command}())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
