"""How well pictures of none of the classes are told from photos, by what the net makes of them.

    python benchmarks/strangers.py cats_vs_dogs pets --weights mobilenet_v2.pth [--strangers DIR]

Of a linear head on a frozen backbone. AUROC (the chance that a test photo scores higher than such
a picture) by three scores: the highest probability, the highest logit and the familiarity, as a
version tells it; and the share that is unfamiliar, of such pictures and of the test photos. The
pictures are those of `analyze`; those in DIR; and, where there are many classes, photos of classes
that were left out: a fifth of them, a few times. Then the same share where fewer photos were
learnt from, drawn a few times.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from frozen import known_of, opened, parser_of

from serving.commandline import aligned
from serving.modelspec import Preprocessing
from trainer.analysis.selective import auroc
from trainer.analysis.strangers import STRANGERS, pictures_below
from trainer.config import TrainConfig
from trainer.data import targets_of
from trainer.familiarise import FOLDS
from trainer.familiarity import familiarity, judges_by_folds, threshold_of
from trainer.features import extract, in_torch
from trainer.metrics import Floats, softmax
from trainer.probe import Head, fit_probe
from trainer.split import Ints, stratified_folds

DRAWS = 6  # of the classes that are left out, and of fewer photos
MANY = 10  # classes
LEVELS = (TrainConfig.unfamiliar, 0.05)
FEWER = (50, 100, 200, 400)  # photos


class Scores:
    """Of features [n, F], each [n]: higher for what is more like the photos learnt from."""

    def __init__(self, features: Floats, labels: Ints, classes: int) -> None:
        generator = np.random.default_rng(0)
        self._head: Head = fit_probe(features[:, None], labels, classes, generator).head
        self._familiar = Familiar(features, labels)

    def of(self, features: Floats) -> dict[str, Floats]:
        logits = self._head.logits(features)
        return {
            "probability": softmax(logits).max(axis=1),
            "logit": logits.max(axis=1),
            "familiarity": self._familiar.of(features),
        }

    def tell(self, photos: Floats, strangers: Floats) -> dict[str, float]:
        inside, outside = self.of(photos), self.of(strangers)
        told = {name: auroc(inside[name], outside[name]) for name in inside}
        threshold = threshold_of(self._familiar.photos, LEVELS[0])
        return told | {
            "unfamiliar": float(np.mean(outside["familiarity"] <= threshold)),
            "of photos": float(np.mean(inside["familiarity"] <= threshold)),
        }


class Familiar:
    """As `trainer.familiarise` has it where the backbone has learnt nothing."""

    def __init__(self, features: Floats, labels: Ints) -> None:
        folds = stratified_folds(labels, FOLDS, np.random.default_rng(0))
        judges = judges_by_folds(features, folds)
        self.photos = len(features)
        self._known, self._gaussian = judges.distances(features), judges.gaussians[0]

    def of(self, features: Floats) -> Floats:
        return familiarity(self._gaussian.distances(features), self._known)


def main() -> int:
    parser = parser_of(__doc__, seeds=1)
    parser.add_argument("--strangers")
    options = parser.parse_args()
    columns = ("PROBABILITY", "LOGIT", "FAMILIARITY", "UNFAMILIAR", "OF PHOTOS")
    rows: list[tuple[object, ...]] = [("PHOTOS", "STRANGERS", *columns)]
    fewer: list[tuple[object, ...]] = [("PHOTOS", "STRANGERS", "LEVEL", *FEWER)]
    for folder in options.data:
        config, data, classifier, kept = opened(folder, 224, options)
        known, labels, classes = known_of(data, classifier, kept)
        known = known[:, 0]  # as served
        tests = data.splits["test"]
        tested = extract(classifier, tests, data.squares, kept, lambda *_: None)[:, 0]
        net, strange = in_torch(classifier), {}
        for kind, draw in STRANGERS.items():
            generator = np.random.default_rng(0)
            strange[kind] = net(
                np.stack([draw(photo, generator) for photo in data.squares.get(tests)])
            )
        if options.strangers:
            spec = Preprocessing(size=config.size, interpolation=config.interpolation)
            given = pictures_below(options.strangers, spec, limit=None, seed=0, workers=2)
            strange["given"] = net(given)
        scores = Scores(known, labels, classes)
        found = {kind: scores.tell(tested, features) for kind, features in strange.items()}
        if classes > MANY:
            found["other classes"] = left_out(known, labels, tested, targets_of(tests), classes)
        name = Path(folder).name
        rows += [
            (name, kind, *(f"{value:.3f}" for value in by_score.values()))
            for kind, by_score in found.items()
        ]
        by_count = [
            of_fewer(known, labels, count, {"of photos": tested, **strange}) for count in FEWER
        ]
        fewer += [
            (name, *key, *(f"{shares[key]:.3f}" for shares in by_count)) for key in by_count[0]
        ]
    print(
        aligned(rows), aligned(fewer), sep="\n\nUnfamiliar, by how many photos were learnt from:\n"
    )
    return 0


def of_fewer(
    known: Floats, labels: Ints, count: int, shown: Mapping[str, Floats]
) -> dict[tuple[str, float], float]:
    """The share of each that is unfamiliar, at each of LEVELS; means over the draws."""
    shares = defaultdict(list)
    for seed in range(DRAWS):
        some = np.random.default_rng(seed).choice(len(known), min(count, len(known)), replace=False)
        familiar = Familiar(known[some], labels[some])
        for kind, features in shown.items():
            familiarities = familiar.of(features)
            for level in LEVELS:
                threshold = threshold_of(familiar.photos, level)
                shares[kind, level].append(np.mean(familiarities <= threshold))
    return {key: float(np.mean(values)) for key, values in shares.items()}


def left_out(
    known: Floats, labels: Ints, tested: Floats, test_labels: Ints, classes: int
) -> dict[str, float]:
    """Means over the draws."""
    generator, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        out = generator.choice(classes, classes // 5, replace=False)
        inside, strange = ~np.isin(labels, out), np.isin(test_labels, out)
        numbers = np.unique(labels[inside], return_inverse=True)[1]
        scores = Scores(known[inside], numbers, classes - len(out))
        found.append(scores.tell(tested[~strange], tested[strange]))
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


if __name__ == "__main__":
    sys.exit(main())
