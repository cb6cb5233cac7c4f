"""What LitServe is told of the model: its workers load it from a module (see peers.py)."""

import base64
from pathlib import Path

import numpy as np
from litserve import LitAPI
from peers import Model


class Photos(LitAPI):  # type: ignore[misc]
    def __init__(self, version: Path, **settings: object) -> None:
        super().__init__(**settings)
        self._version = version

    def setup(self, device: str) -> None:
        self._model = Model(self._version)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, photos: list[bytes]) -> np.ndarray:
        return self._model(photos)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, list[float]]:
        return {"probabilities": output.tolist()}
