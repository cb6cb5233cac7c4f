"""Whether a running server would notice that its photos have changed, though nobody labels them.

    python benchmarks/drift.py MODELS NAME TEST_PHOTOS

TEST_PHOTOS: a folder for each class. Each corruption and severity stands for some hours of changed
photos, and so does each kind of picture that shows nothing. Looked at is the mean probability of
the first label, and counted how many lie below what the version was published with (accuracy less
calibration error) by each margin, as the alert of deploy/monitoring/alerts.yaml does. Judged by the
fp32 file, after its own preprocessing.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
from limit import engine_of, parser_of

from serving.commandline import aligned
from serving.engine import Engine
from serving.photo_paths import photo_paths
from serving.preprocess import preprocess
from trainer.analysis.corruptions import KINDS, SEVERITIES, corrupt
from trainer.analysis.strangers import STRANGERS
from trainer.pictures import Pixels

MARGINS = (0.03, 0.05, 0.1)  # alerts.yaml has one of them
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
    options = parser_of(__doc__).parse_args()
    engine = engine_of(options.models, options.name, "fp32", 1)
    manifest = engine.manifest
    paths = photo_paths([options.photos])
    pictures = [preprocess(path.read_bytes(), manifest.preprocessing) for path in paths]
    targets = np.array([manifest.labels.index(path.parent.name) for path in paths])
    measured = manifest.variants["fp32"].metrics
    usual = measured.accuracy - measured.ece

    def alarms(found: Sequence[float]) -> list[str]:
        return [f"{sum(sure < usual - margin for sure in found)}" for margin in MARGINS]

    print(
        f"{manifest.name}: accuracy {measured.accuracy:.3f}, calibration error {measured.ece:.3f}"
    )
    named = [f"BELOW BY {margin}" for margin in MARGINS]
    rows: list[tuple[object, ...]] = [("PHOTOS", "OF", "ACCURACY", "MEAN PROBABILITY", *named)]
    plain = judged(engine, pictures, targets, lambda picture, _: picture)
    rows.append(("as they are", 1, *(f"{value:.3f}" for value in plain), *alarms(plain[1:])))
    fell: list[tuple[float, float]] = []  # the accuracy, from `plain`; the mean probability
    for severity in SEVERITIES:
        found = [judged(engine, pictures, targets, corrupted(kind, severity)) for kind in KINDS]
        fell += [(plain[0] - right, sure) for right, sure in found]
        means = (f"{value:.3f}" for value in np.mean(found, axis=0))
        told = alarms([sure for _, sure in found])
        rows.append((f"corrupted, severity {severity}", len(KINDS), *means, *told))
    for stranger, change in STRANGERS.items():
        _, sure = judged(engine, pictures, targets, change)
        rows.append((stranger, 1, "", f"{sure:.3f}", *alarms([sure])))
    for low, high in ((-1.0, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 1.0)):
        some = [sure for accuracy, sure in fell if low <= accuracy < high]
        told = f"{low:.2f} to {high:.2f}" if low > 0 else f"less than {high:.2f}"
        rows.append((f"accuracy fell by {told}", len(some), "", "", *alarms(some)))
    print(aligned(rows))
    error = np.mean([abs(accuracy - (plain[1] - sure)) for accuracy, sure in fell])
    print(f"the fall of the mean probability is off that of the accuracy by {error:.3f} on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
