"""Makes versions."""

import os

# As in serving.runtime: ONNX Runtime reads it at import, and parts of its package import the rest.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
