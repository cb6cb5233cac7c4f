"""Two versions side by side on the same photos, and how far an attack on one carries over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serving.percent import percent
from serving.repository import Repository
from trainer.analysis.attacks.ball import Ball
from trainer.analysis.attacks.gradient import pgd
from trainer.analysis.lattice import to_uint8
from trainer.analysis.paired import in_a_sentence, paired
from trainer.analysis.photos import Photos, at_random, load_photos
from trainer.analysis.robustness import proportion
from trainer.analysis.seeds import generator_of
from trainer.analysis.settings import BUDGETS, REFERENCE_EPSILON, Budget, k255
from trainer.analysis.study import chunks_of
from trainer.analysis.subject import Subject, load_subject
from trainer.analysis.sweep import surest
from trainer.analysis.trust import most_photos
from trainer.errors import InvalidData
from trainer.metrics import Bools

SCHEMA_VERSION = 2


def compare(
    repository: Repository,
    versions: Sequence[tuple[str, int]],
    data: str,
    *,
    budget: str,
    photos: int | None,
    seed: int,
    device: str,
    workers: int,
    datasets: Path | None = None,
) -> dict[str, Any]:
    """Figures of each version; `paired`, from the first version to the second, on all photos;
    and transfer[i][j]: of the photos that both have right, the share that PGD at the reference
    epsilon, to its last step, on version i turns in version j, as served; None if there are none.

    Of photos that none was trained on. The versions must know the same classes. Raises NotFound,
    BrokenVersion, InvalidData.
    """
    settings = BUDGETS[budget]
    subjects = [load_subject(repository, n, v, torch.device(device)) for n, v in versions]
    if len({tuple(sorted(subject.labels)) for subject in subjects}) > 1:
        raise InvalidData("the versions do not know the same classes; there is nothing to compare")
    load = partial(
        load_photos,
        data,
        repository,
        seed=seed,
        workers=workers,
        datasets=datasets,
        of_all=[subject.manifest for subject in subjects],
    )
    sets = [load(subject.manifest, limit=photos or settings.photos) for subject in subjects]
    fewest = min(most_photos(subject.manifest.preprocessing.size) for subject in subjects)
    more = [
        _right(subject, load(subject.manifest, limit=fewest, draw=at_random, once=True))
        for subject in subjects
    ]
    attacked = [
        _attack(subject, photo_set, settings, seed)
        for subject, photo_set in zip(subjects, sets, strict=True)
    ]
    rights = [one.right for one in attacked]
    turned = [
        [
            subject.verdict(one.pictures).argmax(axis=1) != photo_set.labels
            for subject, photo_set in zip(subjects, sets, strict=True)
        ]
        for one in attacked
    ]
    both = np.logical_and.reduce(rights)
    return {
        "schema_version": SCHEMA_VERSION,
        "data": {"folder": str(data), "digest": sets[0].digest, "photos": len(both)},
        "epsilon": REFERENCE_EPSILON,
        "paired": paired(*more),
        "both_right": int(both.sum()),
        "versions": [
            _figures(subject, one) for subject, one in zip(subjects, attacked, strict=True)
        ],
        "transfer": [
            [float(column[both].mean()) if both.any() else None for column in row] for row in turned
        ],
    }


def _right(subject: Subject, photos: Photos) -> Bools:
    right: Bools = subject.outputs("fp32", photos.pixels)[0].argmax(axis=1) == photos.labels
    return right


@dataclass(frozen=True, kw_only=True)
class _Attacked:
    right: Bools  # [n], before any attack
    stands: Mapping[float, Bools]  # epsilon -> [n]: right, and PGD did not turn it
    pictures: npt.NDArray[np.uint8]  # [n, S, S, 3], at the reference epsilon, of all steps


def _attack(subject: Subject, photos: Photos, budget: Budget, seed: int) -> _Attacked:
    """PGD at growing sizes; what fell at a smaller one is not attacked again but for `pictures`."""
    right = subject.verdict(photos.pixels).argmax(axis=1) == photos.labels
    still, stands = right.copy(), {}
    for epsilon in budget.linf:
        generator = generator_of(seed, f"compare/{epsilon}")
        for rows in chunks_of(np.flatnonzero(still)):
            result = pgd(
                subject.model,
                subject.images(photos.pixels[rows]),
                subject.goal(photos.labels[rows]),
                Ball(norm="linf", epsilon=epsilon),
                steps=budget.pgd_steps,
                restarts=budget.pgd_restarts,
                generator=generator,
            )
            found = to_uint8(result.adversarial).cpu().numpy()
            said = subject.verdict(found).argmax(axis=1)
            still[rows] &= said == photos.labels[rows]
        stands[epsilon] = still.copy()
    parts = [
        surest(subject, photos.pixels[rows], photos.labels[rows], budget.pgd_steps)["adversarial"]
        for rows in chunks_of(np.arange(len(right)))
    ]
    return _Attacked(right=right, stands=stands, pictures=np.concatenate(parts))


def _figures(subject: Subject, attacked: _Attacked) -> dict[str, Any]:
    manifest = subject.manifest
    variant = manifest.variants["fp32"]
    return {
        "version": f"{manifest.name}/{manifest.version}",
        "backbone": manifest.backbone,
        "picture_size": manifest.preprocessing.size,
        "mirror": bool(manifest.configuration.get("mirror")),
        "defence": manifest.configuration.get("adversarial") or "none",
        "clean": proportion(attacked.right),
        "robust": [
            {"epsilon": epsilon, **proportion(stands)}
            for epsilon, stands in attacked.stands.items()
        ],
        "size": manifest.files[variant.file].size,
        "latency_ms": variant.latency_ms,
    }


def render(made: dict[str, Any]) -> str:
    """One self-contained page."""
    names = [v["version"] for v in made["versions"]]
    rows = [
        ("backbone", [v["backbone"] for v in made["versions"]]),
        ("pictures", [f"{v['picture_size']} px" for v in made["versions"]]),
        ("seen", ["both ways" if v["mirror"] else "as it is" for v in made["versions"]]),
        ("defence", [v["defence"] for v in made["versions"]]),
        ("clean accuracy", [_share(v["clean"]) for v in made["versions"]]),
        *(
            (f"left by PGD at {k255(points[0]['epsilon'])}", [_share(p) for p in points])
            for points in zip(*(v["robust"] for v in made["versions"]), strict=True)
        ),
        ("size", [f"{v['size'] / 1e6:.1f} MB" for v in made["versions"]]),
        ("one photo", [f"{v['latency_ms']:.1f} ms" for v in made["versions"]]),
    ]
    transfer = [
        (f"made against {names[i]}", ["-" if s is None else percent(s) for s in row])
        for i, row in enumerate(made["transfer"])
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(' and '.join(names))}</title><style>"
        "body{font:16px/1.5 system-ui,sans-serif;max-width:800px;margin:1.5rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%;margin:.6rem 0 1.6rem}"
        "td,th{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #dfe4e8}"
        "td:first-child,th:first-child{text-align:left}.soft{color:#5b6770}</style></head><body>"
        f"<h1>{escape(' and '.join(names))}</h1>"
        f"<p>{made['data']['photos']} photos of {escape(made['data']['folder'])}, judged by the "
        f"served fp32 files. In brackets: 95 % intervals.</p>{_table(names, rows)}"
        f"<h2>Is {escape(names[1])} right more often?</h2>"
        f"<p>{escape(in_a_sentence(made['paired']))}.</p>"
        '<p class="soft">Of all photos that neither was trained on (at most 2,000, at random); '
        "copies and bursts count once. Photos that both have right, or both wrong, tell nothing of "
        "the change: p is of the exact test of McNemar on the others. In brackets: the 95 % "
        "interval of the change (Agresti and Min 2005).</p>"
        "<h2>Do adversarial images transfer?</h2>"
        f"<p>PGD at {k255(made['epsilon'])}, run to its last step, makes images against one "
        "version; they are shown to both. The table has the share that is turned, of the "
        f"{made['both_right']} photos that both have right.</p>"
        f"{_table([f'turned in {name}' for name in names], transfer)}</body></html>\n"
    )


def _share(p: dict[str, Any]) -> str:
    return f"{percent(p['accuracy'])} ({percent(p['low'])} to {percent(p['high'])})"


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in ["", *heads])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in [name, *cells]) + "</tr>"
        for name, cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
