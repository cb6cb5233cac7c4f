"""How well pictures of none of the classes are told from photos, by what the net makes of them.

    python benchmarks/strangers.py cats_vs_dogs pets --weights mobilenet_v2.pth

AUROC on the test photos (the chance that a photo scores higher than such a picture) of a linear
head on a frozen backbone, by three scores: the highest probability and the highest logit, which a
server can tell of today's versions, and the distance of the features from those of train and val
(Mahalanobis, covariance over all classes, drawn towards a ball by SHRINKAGE; after Lee et al. 2018,
arXiv:1807.03888). The pictures are those of `analyze`; and, where there are many classes, photos of
classes that were left out: a fifth of them, a few times.
"""

import sys
from pathlib import Path

import numpy as np
from frozen import known_of, opened, parser_of

from serving.commandline import aligned
from trainer.analysis.selective import auroc
from trainer.analysis.strangers import STRANGERS
from trainer.data import targets_of
from trainer.features import extract, in_torch
from trainer.metrics import Floats, softmax
from trainer.probe import Head, fit_probe
from trainer.split import Ints

SHRINKAGE = 0.3
DRAWS = 6  # of the classes that are left out
MANY = 10  # classes


class Scores:
    """Of features [n, F], each [n]: higher for what is more like the photos learnt from."""

    def __init__(self, features: Floats, labels: Ints, classes: int) -> None:
        generator = np.random.default_rng(0)
        self._head: Head = fit_probe(features[:, None], labels, classes, generator).head
        self._centre = features.mean(axis=0)
        covariance = np.cov(features, rowvar=False)
        ball = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        self._inverse = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * ball)

    def of(self, features: Floats) -> dict[str, Floats]:
        logits = self._head.logits(features)
        away = features - self._centre
        return {
            "probability": softmax(logits).max(axis=1),
            "logit": logits.max(axis=1),
            "distance": -((away @ self._inverse) * away).sum(axis=1),
        }

    def tell(self, photos: Floats, strangers: Floats) -> dict[str, float]:
        inside, outside = self.of(photos), self.of(strangers)
        return {name: auroc(inside[name], outside[name]) for name in inside}


def main() -> int:
    options = parser_of(__doc__, seeds=1).parse_args()
    rows: list[tuple[object, ...]] = [("PHOTOS", "STRANGERS", "PROBABILITY", "LOGIT", "DISTANCE")]
    for folder in options.data:
        _, data, classifier, kept = opened(folder, 224, options)
        known, labels, classes = known_of(data, classifier, kept)
        known = known[:, 0]  # as served
        tests = data.splits["test"]
        tested = extract(classifier, tests, data.squares, kept, lambda *_: None)[:, 0]
        found = {}
        scores, net = Scores(known, labels, classes), in_torch(classifier)
        for kind, draw in STRANGERS.items():
            generator = np.random.default_rng(0)
            drawn = np.stack([draw(photo, generator) for photo in data.squares.get(tests)])
            found[kind] = scores.tell(tested, net(drawn))
        if classes > MANY:
            found["other classes"] = left_out(known, labels, tested, targets_of(tests), classes)
        rows += [
            (Path(folder).name, kind, *(f"{value:.3f}" for value in by_score.values()))
            for kind, by_score in found.items()
        ]
    print(aligned(rows))
    return 0


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
