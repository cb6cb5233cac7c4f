"""Which photos a version's familiarity is of: those it has learnt from, and those held out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from serving.errors import first_line
from trainer.data import PhotoData, targets_of
from trainer.evaluation import run_photos
from trainer.exporter import feature_runner
from trainer.familiar_graph import attach
from trainer.familiarity import FEWEST, Doubles, Judges, judges_by_folds, judges_of
from trainer.metrics import Floats
from trainer.onnx_runner import OnnxRunner
from trainer.pictures import Photo
from trainer.preparing import Run
from trainer.split import Ints, spread, stratified_folds

_MOST = 2000  # photos learnt from, and held out: enough for a threshold of one in a hundred
FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class Familiarised:
    """What makes a file tell the familiarity."""

    judges: Judges
    compared: tuple[Photo, ...]
    known: Doubles  # their distances [n], by the net in fp32
    look: Callable[[OnnxRunner, tuple[Photo, ...]], Floats]

    @property
    def photos(self) -> int:
        return len(self.compared)

    def strangest(self, count: int) -> list[Photo]:
        """Of the photos that are compared with, those least like the others, strangest first."""
        order = np.argsort(-self.known, kind="stable")[:count]
        return [self.compared[i] for i in order]

    def attach(self, model: onnx.ModelProto, precision: str) -> None:
        """In place. Of other precisions the features are others, and so are the distances."""
        known = self.known
        if precision != "fp32":
            runner = feature_runner(model, precision)
            known = self.judges.distances(self.look(runner, self.compared))
        attach(model, self.judges.gaussians[0], known)


def familiarised(run: Run, exported: onnx.ModelProto) -> Familiarised | None:
    """Of the net of the run as `exported` in fp32; None, and said, where that can't be.

    Where its backbone has learnt nothing, all photos of train and val are both learnt from and
    compared with, in folds; else those of val are held out. Of photos that show the same picture
    one is taken: the others would say nothing of how strange the next picture may be.
    """
    data, console = run.data, run.console

    def look(runner: OnnxRunner, photos: tuple[Photo, ...]) -> Floats:
        with console.bar("Familiar photos", len(photos)) as advance:
            return run_photos(runner, photos, data.squares, advance)[0]

    try:
        if run.features is not None:
            chosen = _some(data, data.learnt_from)
            compared = tuple(data.learnt_from[i] for i in chosen)
            _require_enough(compared)
            features = run.features[chosen]
            generator = np.random.default_rng(run.config.seed)
            judges = judges_by_folds(
                features, stratified_folds(targets_of(compared), FOLDS, generator)
            )
        else:
            train, compared = (
                tuple(photos[i] for i in _some(data, photos))
                for photos in (data.splits["train"], data.splits["val"])
            )
            _require_enough(train)
            _require_enough(compared)
            features = look(feature_runner(exported), train + compared)
            judges = judges_of(features, len(compared))
            features = features[len(train) :]
    except ValueError as error:
        console.line(f"It will not say how familiar a picture is: {first_line(error)}")
        return None
    return Familiarised(
        judges=judges, compared=compared, known=judges.distances(features), look=look
    )


def _some(data: PhotoData, photos: tuple[Photo, ...]) -> Ints:
    """Ascending indices of photos that show different pictures, _MOST of them at most."""
    _, first = np.unique(data.units(photos), return_index=True)
    different: Ints = np.sort(first)
    return different[spread(len(different), _MOST)]


def _require_enough(photos: tuple[Photo, ...]) -> None:
    if len(photos) < FEWEST:
        raise ValueError(f"{len(photos)} different photos to compare with are fewer than {FEWEST}")
