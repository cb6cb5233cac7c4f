"""The same model in another server. Started by server.py, in an environment that has that server.

    python -m venv /tmp/pytriton && /tmp/pytriton/bin/pip install nvidia-pytriton onnxruntime pillow
    python -m venv /tmp/mlserver && /tmp/mlserver/bin/pip install mlserver onnxruntime pillow
    python -m venv /tmp/litserve && /tmp/litserve/bin/pip install litserve onnxruntime pillow

Each decodes photos with our preprocessing and runs our ONNX file with ONNX Runtime, batches as its
documentation has it (at most 16 photos, 2 ms), and answers the Open Inference Protocol over gRPC;
LitServe has HTTP alone, and takes a photo in JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MAX_BATCH, MAX_DELAY_S = 16, 0.002
VERSION = "PAWPRINT_PEER_VERSION"  # the folder of the version, for MLServer's worker


class Model:
    """bytes -> probabilities, with a session that uses all cores."""

    def __init__(self, version: Path) -> None:
        sys.path.insert(0, str(ROOT))
        import onnxruntime

        from serving.modelspec import Manifest
        from serving.preprocess import preprocess

        manifest = Manifest.from_json((version / "manifest.json").read_bytes())
        self.classes, self._spec = len(manifest.labels), manifest.preprocessing
        self._preprocess = preprocess
        self._session = onnxruntime.InferenceSession(
            version / "model.onnx", providers=["CPUExecutionProvider"]
        )

    def __call__(self, photos: list[bytes]) -> np.ndarray:
        pixels = np.stack([self._preprocess(photo, self._spec) for photo in photos])
        return self._session.run(["probabilities"], {"image": pixels})[0]


def pytriton(version: Path, name: str, port: int) -> None:
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    model = Model(version)

    @batch
    def infer(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"probabilities": model([row[0] for row in image])}

    delay = DynamicBatcher(max_queue_delay_microseconds=round(MAX_DELAY_S * 1e6))
    config = TritonConfig(grpc_port=port, allow_http=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=name,
            infer_func=infer,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(model.classes,))],
            config=ModelConfig(max_batch_size=MAX_BATCH, batcher=delay),
        )
        triton.serve()


def mlserver(version: Path, name: str, port: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"grpc_port": port, "http_port": port + 1, "metrics_port": port + 2}
        settings["parallel_workers"] = 0  # its workers stop with an error on uvloop 0.22
        model = {
            "name": name,
            "implementation": "peers.Runtime",
            "max_batch_size": MAX_BATCH,
            "max_batch_time": MAX_DELAY_S,
        }
        Path(folder, "settings.json").write_text(json.dumps(settings))
        Path(folder, "model-settings.json").write_text(json.dumps(model))
        variables = {VERSION: str(version), "PYTHONPATH": str(Path(__file__).parent)}
        program = Path(sys.executable).with_name("mlserver")
        subprocess.run([program, "start", folder], env=os.environ | variables, check=True)


if "mlserver" in sys.modules:  # loaded by MLServer itself
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse

    class Runtime(MLModel):
        async def load(self) -> bool:
            self._model = Model(Path(os.environ[VERSION]))
            return True

        async def predict(self, payload: InferenceRequest) -> InferenceResponse:
            data = payload.inputs[0].data
            photos = [bytes(photo) for photo in getattr(data, "root", data)]
            output = NumpyCodec.encode_output("probabilities", self._model(photos))
            return InferenceResponse(model_name=self.name, outputs=[output])


def litserve(version: Path, name: str, port: int) -> None:
    import litserve
    from litserve_photos import Photos

    api = Photos(version, max_batch_size=MAX_BATCH, batch_timeout=MAX_DELAY_S, api_path=f"/{name}")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


PEERS = {"pytriton": pytriton, "mlserver": mlserver, "litserve": litserve}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("version", type=Path)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    PEERS[options.peer](options.version.resolve(), options.name, options.port)
