"""ONNX Runtime, without the telemetry that its wheels for Linux send unless told not to.

Since 1.31 they keep events in ~/.cache/Microsoft and send them (Privacy.md in the package): what a
server is given to classify, and on what machine, is nobody else's business. It is read at import.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as onnxruntime
