"""Two versions side by side on the same photos, and how far an attack on one carries over."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.repository import Repository
from trainer.analysis.attacks.ball import Ball
from trainer.analysis.attacks.gradient import pgd
from trainer.analysis.lattice import to_uint8
from trainer.analysis.photos import load_photos
from trainer.analysis.report import k255, percent
from trainer.analysis.robustness import proportion
from trainer.analysis.settings import BUDGETS, REFERENCE_EPSILON
from trainer.analysis.subject import Subject, load_subject
from trainer.errors import InvalidData

SCHEMA_VERSION = 1


def compare(
    repository: Repository,
    versions: Sequence[tuple[str, int]],
    data: Path,
    *,
    budget: str,
    photos: int | None,
    seed: int,
    device: str,
    workers: int,
) -> dict[str, Any]:
    """Figures of each version, and transfer[i][j]: of the photos that both have right, the share
    that PGD at the reference epsilon on version i turns in version j, as served.

    The versions must know the same classes. Raises NotFound, BrokenVersion, InvalidData.
    """
    settings = BUDGETS[budget]
    subjects = [load_subject(repository, n, v, torch.device(device)) for n, v in versions]
    if len({tuple(sorted(subject.labels)) for subject in subjects}) > 1:
        raise InvalidData("the versions do not know the same classes; there is nothing to compare")
    sets = [
        load_photos(
            data,
            repository,
            subject.manifest,
            limit=photos or settings.photos,
            seed=seed,
            workers=workers,
        )
        for subject in subjects
    ]
    if len({s.files for s in sets}) > 1:
        raise InvalidData(
            "the versions kept different photos of that folder for the test; "
            "give a folder that neither was trained on"
        )
    rights, turned = [], []
    made = []
    for subject, photo_set in zip(subjects, sets, strict=True):
        right = subject.judge(photo_set.pixels)[0][0].argmax(axis=1) == photo_set.labels
        images = subject.images(photo_set.pixels)
        result = pgd(
            subject.model,
            images,
            subject.goal(photo_set.labels),
            Ball(norm="linf", epsilon=REFERENCE_EPSILON),
            steps=settings.pgd_steps,
            restarts=settings.pgd_restarts,
            generator=torch.Generator().manual_seed(seed),
        )
        rights.append(right)
        made.append(to_uint8(result.adversarial).cpu().numpy())
    for pictures in made:
        turned.append(
            [
                subject.judge(pictures)[0][0].argmax(axis=1) != photo_set.labels
                for subject, photo_set in zip(subjects, sets, strict=True)
            ]
        )
    both = np.logical_and.reduce(rights)
    return {
        "schema_version": SCHEMA_VERSION,
        "data": {"folder": str(data), "digest": sets[0].digest, "photos": len(both)},
        "epsilon": REFERENCE_EPSILON,
        "both_right": int(both.sum()),
        "versions": [
            _figures(repository, subject, rights[i], rights[i] & ~turned[i][i])
            for i, subject in enumerate(subjects)
        ],
        "transfer": [
            [float(column[both].mean()) if both.any() else 0.0 for column in row] for row in turned
        ],
    }


def _figures(
    repository: Repository, subject: Subject, right: np.ndarray, robust: np.ndarray
) -> dict[str, Any]:
    manifest = subject.manifest
    variant = manifest.variants["fp32"]
    return {
        "version": f"{manifest.name}/{manifest.version}",
        "backbone": manifest.backbone,
        "defence": manifest.configuration.get("adversarial") or "none",
        "clean": proportion(right),
        "robust": proportion(robust),
        "size": manifest.files[variant.file].size,
        "latency_ms": variant.latency_ms,
    }


def render(made: dict[str, Any]) -> str:
    """One self-contained page."""
    names = [v["version"] for v in made["versions"]]
    rows = [
        ("backbone", [v["backbone"] for v in made["versions"]]),
        ("defence", [v["defence"] for v in made["versions"]]),
        ("clean accuracy", [_share(v["clean"]) for v in made["versions"]]),
        (
            f"left by PGD at {k255(made['epsilon'])}",
            [_share(v["robust"]) for v in made["versions"]],
        ),
        ("size", [f"{v['size'] / 1e6:.1f} MB" for v in made["versions"]]),
        ("one photo", [f"{v['latency_ms']:.1f} ms" for v in made["versions"]]),
    ]
    transfer = [
        (f"made on {names[i]}", [percent(share) for share in row])
        for i, row in enumerate(made["transfer"])
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(' and '.join(names))}</title><style>"
        "body{font:16px/1.5 system-ui,sans-serif;max-width:800px;margin:1.5rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%;margin:.6rem 0 1.6rem}"
        "td,th{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #dfe4e8}"
        "td:first-child,th:first-child{text-align:left}</style></head><body>"
        f"<h1>{escape(' and '.join(names))}</h1>"
        f"<p>{made['data']['photos']} photos of {escape(made['data']['folder'])}, judged as served."
        f"</p>{_table(names, rows)}<h2>Do adversarial images transfer?</h2>"
        f"<p>Of the {made['both_right']} photos that both have right, the share that PGD at "
        f"{k255(made['epsilon'])} on one turns in the other.</p>"
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
