"""config.pbtxt and labels.txt of a model, so that NVIDIA's Triton can serve the same repository.

models/<name>/config.pbtxt, labels.txt, <version>/model.onnx is the layout of its model repository;
what else lies there it leaves alone (triton-inference-server/server, docs/user_guide/
model_repository.md and model_configuration.md). It takes pixels, not encoded photos.
"""

from serving.modelspec import FAMILIARITY, INPUT, Manifest, widths_of

CONFIG = "config.pbtxt"
LABELS = "labels.txt"

_MAX_BATCH = 16


def triton_files(manifest: Manifest) -> dict[str, str]:
    """File -> content, to lie beside the versions. Triton serves the newest version."""
    side = manifest.preprocessing.size
    outputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {width} ]{_labelled(name)} }}'
        for name, width in widths_of(manifest).items()
    )
    config = f"""\
# Written by Pawprint with version {manifest.version}; publishing another version writes it again.
name: "{manifest.name}"
platform: "onnxruntime_onnx"
default_model_filename: "{manifest.variants["fp32"].file}"
max_batch_size: {_MAX_BATCH}
input [
  {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {side}, {side}, 3 ] }}
]
output [
{outputs}
]
version_policy: {{ latest {{ num_versions: 1 }} }}
dynamic_batching {{ }}
"""
    return {LABELS: "".join(f"{label}\n" for label in manifest.labels), CONFIG: config}


def _labelled(output: str) -> str:
    return "" if output == FAMILIARITY else f' label_filename: "{LABELS}"'
