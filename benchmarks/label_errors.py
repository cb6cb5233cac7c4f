"""Which wrong labels `train` finds: a share of the labels of train and val is changed, and what is
named is compared with what was. Then heads that learnt from all photos, from those that are left by
`--drop-label-errors`, and from all with their right labels, on the test photos.

    python benchmarks/label_errors.py cats_vs_dogs pets --weights mobilenet_v2.pth

A Markdown table on stdout; figures are means over the seeds.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from frozen import known_of, opened, parser_of

from trainer.calibration import fit_temperature
from trainer.data import PhotoData
from trainer.features import extract
from trainer.label_errors import with_label_errors
from trainer.metrics import Floats, accuracy, expected_calibration_error, softmax
from trainer.probe import Probe, fit_probe
from trainer.split import Ints
from trainer.threads import keep_to_cores

_ANY, _MOST_LIKE = "any other class", "the class that it looks most like"
_ONE_WAY = "the first class, all of the second"


def main() -> int:
    parser = parser_of(__doc__, seeds=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    options = parser.parse_args()
    keep_to_cores()
    print("| photos | changed to | changed | named | of these changed | accuracy | ECE |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for folder in options.data:
        _measure(folder, options)
    return 0


def _measure(folder: str, options: argparse.Namespace) -> None:
    _, data, classifier, kept = opened(folder, options.size, options)
    features, labels, classes = known_of(data, classifier, kept)
    test = extract(classifier, data.splits["test"], data.squares, kept, lambda *_: None)
    targets = data.targets("test")

    def probe(rows: Floats, known: Ints, seed: int) -> Probe:
        return fit_probe(rows, known, classes, np.random.default_rng(seed))

    def judge(probe: Probe, known: Ints) -> tuple[float, float]:
        """Accuracy and calibration error on the test photos."""
        logits = probe.head.logits(test[:, 0])
        scores = softmax(logits / fit_temperature(probe.out_of_fold, known))
        return accuracy(scores, targets), expected_calibration_error(scores, targets)

    right = [probe(features, labels, seed) for seed in range(options.seeds)]
    found = [len(_with(data, labels, each.out_of_fold)[0]) for each in right]
    clean = np.mean([judge(each, labels) for each in right], axis=0)
    title = f"{Path(folder).name}, {len(labels)}"
    print(
        f"| {title} | | 0 | {np.mean(found):.1f} | | {clean[0]:.3f} | {clean[1]:.3f} |",
        flush=True,
    )
    for how in _ways(classes):
        for share in options.shares:
            rows = []
            for seed, truth in enumerate(right):
                generator = np.random.default_rng([seed, 1])
                among = np.flatnonzero(labels == 1) if how == _ONE_WAY else np.arange(len(labels))
                chosen = generator.choice(among, round(share * len(labels)), False)
                other = (labels + generator.integers(1, classes, len(labels))) % classes
                if how == _MOST_LIKE:
                    others = truth.out_of_fold.copy()
                    others[np.arange(len(labels)), labels] = -np.inf
                    other = others.argmax(axis=1)
                noisy = labels.copy()
                noisy[chosen] = other[chosen]
                as_it_is = probe(features, noisy, seed)
                named, left = _with(data, noisy, as_it_is.out_of_fold)
                dropped = probe(features[left], noisy[left], seed)
                hit = len(np.intersect1d(named, chosen))
                marks = judge(as_it_is, noisy), judge(dropped, noisy[left])
                rows.append((len(chosen), len(named), hit, *marks[0], *marks[1]))
            changed, count, hits, *marks = np.mean(rows, axis=0).tolist()
            print(
                f"| {title} | {how} | {changed:.0f} | {count:.1f} | {hits:.1f} "
                f"| {marks[0]:.3f}, dropped {marks[2]:.3f} "
                f"| {marks[1]:.3f}, dropped {marks[3]:.3f} |",
                flush=True,
            )


def _ways(classes: int) -> tuple[str, ...]:
    """Of two classes there is one other; of more, one has too few photos to change so many."""
    return (_ANY, _ONE_WAY) if classes == 2 else (_ANY, _MOST_LIKE)


def _with(data: PhotoData, labels: Ints, out_of_fold: Floats) -> tuple[Ints, Ints]:
    """(the photos that are named, those that are left without them): indices in train and val."""
    parts = np.split(labels, [len(data.splits["train"])])
    changed = dict(data.splits)
    for split, part in zip(("train", "val"), parts, strict=True):
        changed[split] = tuple(
            dataclasses.replace(photo, label=int(label))
            for photo, label in zip(data.splits[split], part, strict=True)
        )
    noisy = dataclasses.replace(data, splits=changed)
    found = with_label_errors(noisy, out_of_fold, drop=True)
    place = {photo.digest: at for at, photo in enumerate(noisy.learnt_from)}
    named = [place[error.photo.digest] for error in found.label_errors]
    left = [place[photo.digest] for photo in found.learnt_from]
    return np.array(named, dtype=np.int64), np.array(left, dtype=np.int64)


if __name__ == "__main__":
    sys.exit(main())
