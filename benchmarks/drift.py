"""Whether a running server would notice that its photos have changed, with no label given to it:
the mean of the first label's probability beside the accuracy that the version was published with.

    python benchmarks/drift.py MODELS NAME TEST_PHOTOS

TEST_PHOTOS: a folder for each class. Each corruption and severity stands for an hour of changed
photos, and so does each kind of picture that shows nothing; the alarm is that of
deploy/monitoring/alerts.yaml. Judged by the file that is served, after its own preprocessing.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from limit import engine_of

from serving.commandline import aligned
from serving.engine import Engine
from serving.photo_paths import photo_paths
from serving.preprocess import preprocess
from trainer.analysis.corruptions import KINDS, SEVERITIES, corrupt
from trainer.analysis.strangers import STRANGERS
from trainer.pictures import Pixels

MARGIN = 0.1  # as in alerts.yaml
Change = Callable[[Pixels, np.random.Generator], Pixels]


def judged(
    engine: Engine, pictures: list[Pixels], targets: np.ndarray, change: Change
) -> tuple[float, float]:
    """(accuracy, mean probability of the first label) of the changed pictures."""
    generator = np.random.default_rng(0)
    changed = [change(picture, generator) for picture in pictures]
    probabilities = np.concatenate([engine.run(picture[None])[0] for picture in changed])
    right = probabilities.argmax(axis=1) == targets
    return float(right.mean()), float(probabilities.max(axis=1).mean())


def corrupted(kind: str, severity: int) -> Change:
    return lambda picture, generator: corrupt(picture, kind, severity, generator)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path)
    parser.add_argument("name")
    parser.add_argument("photos", type=Path)
    options = parser.parse_args()
    engine = engine_of(options.models, options.name, "fp32", 1)
    manifest = engine.manifest
    paths = photo_paths([options.photos])
    pictures = [preprocess(path.read_bytes(), manifest.preprocessing) for path in paths]
    targets = np.array([manifest.labels.index(path.parent.name) for path in paths])
    measured = manifest.variants["fp32"].metrics
    least = measured.accuracy - measured.ece - MARGIN

    plain = judged(engine, pictures, targets, lambda picture, _: picture)
    rows: list[tuple[object, ...]] = [("PHOTOS", "ACCURACY", "MEAN PROBABILITY", "ALARMS")]
    rows.append(("as they are", *(f"{value:.3f}" for value in plain), int(plain[1] < least)))
    fell: list[tuple[float, float, bool]] = []  # of accuracy, of the mean probability; the alarm
    for severity in SEVERITIES:
        found = [judged(engine, pictures, targets, corrupted(kind, severity)) for kind in KINDS]
        fell += [(plain[0] - right, plain[1] - sure, sure < least) for right, sure in found]
        right, sure = np.mean(found, axis=0)
        alarms = sum(sure < least for _, sure in found)
        told = f"{alarms} of {len(KINDS)}"
        rows.append((f"corrupted, severity {severity}", f"{right:.3f}", f"{sure:.3f}", told))
    for stranger, change in STRANGERS.items():
        _, sure = judged(engine, pictures, targets, change)
        rows.append((stranger, "", f"{sure:.3f}", int(sure < least)))
    print(f"{manifest.name}: an alarm below {least:.3f}")
    print(aligned(rows))
    for low, high in ((-1.0, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 1.0)):
        alarms = [alarm for accuracy, _, alarm in fell if low <= accuracy < high]
        told = f"{low:.2f} to {high:.2f}" if low > 0 else f"less than {high:.2f}"
        print(f"accuracy fell by {told}: {sum(alarms)} alarms of {len(alarms)}")
    error = np.mean([abs(accuracy - sureness) for accuracy, sureness, _ in fell])
    print(f"the fall of the mean probability is off that of the accuracy by {error:.3f} on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
