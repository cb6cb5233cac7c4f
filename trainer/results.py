"""What a training has come to."""

from dataclasses import dataclass

from serving.modelspec import Familiarity, Manifest
from trainer.training import Epoch


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """How the weights came about."""

    how: str
    temperature: float
    penalty: float | None  # of the linear probe
    history: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True)
class Published:
    place: str  # of the version: a folder, or in a bucket
    manifest: Manifest
    how: str
    familiarity: Familiarity | None
    stable: int | None  # what callers who name no version get, where an alias says so
    other_labels: str = ""  # in a sentence, where the version that callers got has others
