"""The pictures that a backbone's weights were trained on."""

from dataclasses import dataclass

from serving.modelspec import Normalisation


@dataclass(frozen=True, kw_only=True)
class TrainedInput:
    size: int  # side in pixels
    interpolation: str  # with which photos were resized
    normalisation: Normalisation
