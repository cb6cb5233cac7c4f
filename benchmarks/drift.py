"""Whether a running server would notice that its photos have changed, though nobody labels them.

    python benchmarks/drift.py MODELS NAME TEST_PHOTOS

TEST_PHOTOS: a folder for each class. Each corruption and severity stands for some hours of changed
photos, and so does each kind of picture that shows nothing. Looked at is the mean probability of
the first label, and counted how many lie below what the version was published with (accuracy less
calibration error) by each margin; and at the share of photos that are unfamiliar, and how many lie
above that of the test photos by ALERT, as the alerts of deploy/monitoring/alerts.yaml do. Judged by
the fp32 file, after its own preprocessing.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from limit import engine_of, parser_of

from serving.commandline import aligned
from serving.engine import Engine
from serving.photo_paths import photo_paths
from serving.preprocess import preprocess
from trainer.analysis.corruptions import KINDS, SEVERITIES, corrupt
from trainer.analysis.strangers import STRANGERS
from trainer.pictures import Pixels

MARGINS = (0.03, 0.05, 0.1)
ALERT = 0.05  # in alerts.yaml, of both
Change = Callable[[Pixels, np.random.Generator], Pixels]


class Judged(NamedTuple):
    accuracy: float
    sure: float  # mean probability of the first label
    unfamiliar: float  # share of the pictures


def judged(engine: Engine, pictures: list[Pixels], targets: np.ndarray, change: Change) -> Judged:
    """The changed pictures."""
    generator = np.random.default_rng(0)
    answers = [engine.run(change(picture, generator)[None]) for picture in pictures]
    probabilities, _, familiarities = (np.concatenate(rows) for rows in zip(*answers, strict=True))
    assert engine.familiarity is not None
    return Judged(
        accuracy=float(np.mean(probabilities.argmax(axis=1) == targets)),
        sure=float(probabilities.max(axis=1).mean()),
        unfamiliar=engine.familiarity.share(familiarities[:, 0].tolist()),
    )


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

    assert engine.familiarity is not None, "a version that tells no familiarity"
    unfamiliar = engine.familiarity.unfamiliar["fp32"]

    def alarms(found: Sequence[Judged]) -> list[str]:
        by_sure = [[each.sure < usual - margin for each in found] for margin in MARGINS]
        by_unfamiliar = [each.unfamiliar > unfamiliar + ALERT for each in found]
        either = np.any([by_sure[MARGINS.index(ALERT)], by_unfamiliar], axis=0)
        return [f"{sum(told)}" for told in (*by_sure, by_unfamiliar, either)]

    print(
        f"{manifest.name}: accuracy {measured.accuracy:.3f}, calibration error "
        f"{measured.ece:.3f}, unfamiliar {unfamiliar:.3f}"
    )
    named = [f"BELOW BY {margin}" for margin in MARGINS]
    named += [f"UNFAMILIAR, ABOVE BY {ALERT}", f"EITHER BY {ALERT}"]
    means = ("ACCURACY", "MEAN PROBABILITY", "UNFAMILIAR")
    rows: list[tuple[object, ...]] = [("PHOTOS", "OF", *means, *named)]

    def row(name: str, found: Sequence[Judged]) -> None:
        figures = (f"{value:.3f}" for value in np.mean(found, axis=0))
        rows.append((name, len(found), *figures, *alarms(found)))

    plain = judged(engine, pictures, targets, lambda picture, _: picture)
    row("as they are", [plain])
    changed: list[Judged] = []
    for severity in SEVERITIES:
        found = [judged(engine, pictures, targets, corrupted(kind, severity)) for kind in KINDS]
        changed += found
        row(f"corrupted, severity {severity}", found)
    for stranger, change in STRANGERS.items():
        row(stranger, [judged(engine, pictures, targets, change)])
    for low, high in ((-1.0, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 1.0)):
        some = [each for each in changed if low <= plain.accuracy - each.accuracy < high]
        told = f"{low:.2f} to {high:.2f}" if low > 0 else f"less than {high:.2f}"
        rows.append((f"accuracy fell by {told}", len(some), "", "", "", *alarms(some)))
    print(aligned(rows))
    error = np.mean(
        [abs((plain.accuracy - each.accuracy) - (plain.sure - each.sure)) for each in changed]
    )
    print(f"the fall of the mean probability is off that of the accuracy by {error:.3f} on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
