"""The pictures of a report: which photos are shown, and their files beside it."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.analysis.assemble import Attacked
from trainer.analysis.over_grpc import Server
from trainer.analysis.pictures import captioned, png_bytes, triptych
from trainer.analysis.report import epsilon_text, verdict, words
from trainer.analysis.robustness import size_of
from trainer.analysis.study import Study, spread_over
from trainer.analysis.workspace import Piece

FRAGILE = 8


def write_adversarial(
    folder: Path,
    study: Study,
    attacked: Sequence[Attacked],
    lesson: Piece,
    smallest: dict[str, Piece],
    *,
    count: int,
) -> list[dict[str, Any]]:
    """Save PNGs and triptychs of up to `count` photos that were turned, and describe them.

    Attacks take turns, so that each is shown.
    """
    (folder / "adversarial").mkdir()
    photos, labels = study.photos, study.subject.labels
    shown = spread_over(photos.labels, study.rows, count)
    place = {int(row): i for i, row in enumerate(study.rows)}
    entries: list[dict[str, Any]] = []
    for turn, row in enumerate(shown):
        i, label = place[int(row)], int(photos.labels[row])
        candidates = _candidates(study, attacked, lesson, smallest, i)
        found = [c for c in candidates[turn % len(candidates) :] + candidates if c is not None]
        if not found:
            continue
        name, target, adversarial, served, torched = found[0]
        before = study.clean.served[0][row]
        stem = f"{len(entries):02d}-{_file_stem(photos.files[row])}"
        linf, l2 = size_of(photos.pixels[row], adversarial)
        picture = f"adversarial/{stem}-{name}.png"
        (folder / picture).write_bytes(png_bytes(adversarial))
        (folder / f"adversarial/{stem}.png").write_bytes(png_bytes(photos.pixels[row]))
        entry = {
            "file": photos.files[row],
            "label": labels[label],
            "attack": name,
            "target": None if target is None else labels[target],
            "linf": linf,
            "l2": l2,
            "before": verdict(before, labels),
            "after": verdict(served[0], labels),
            "by_precision": {
                precision: verdict(served[v], labels)
                for v, precision in enumerate(study.subject.precisions)
            },
            "torch": verdict(torched, labels),
            "grpc": None,
            "original": f"adversarial/{stem}.png",
            "picture": picture,
            "triptych": f"adversarial/{stem}-{name}-triptych.webp",
        }
        triptych(
            photos.pixels[row],
            adversarial,
            before=words(entry["before"]),
            after=words(entry["after"]),
            size_of_it=f"Linf {epsilon_text(linf, 'linf')}, L2 {l2:.2f}",
        ).save(folder / entry["triptych"], quality=90)
        entries.append(entry)
    return entries


def show_to_server(folder: Path, entries: Sequence[dict[str, Any]], server: Server) -> None:
    """Add what a running server says of the pictures that write_adversarial describes.

    Raises ServerFailed.
    """
    pngs = [(folder / entry["picture"]).read_bytes() for entry in entries]
    for entry, (label, probability) in zip(entries, server.verdicts(pngs), strict=True):
        entry["grpc"] = {"label": label, "probability": probability, "server": server.address}


def write_fragile(folder: Path, study: Study, smallest: dict[str, Piece]) -> list[dict[str, Any]]:
    """The photos that the smallest perturbations turn: original beside what it became."""
    (folder / "fragile").mkdir()
    norm = "l2"  # finer than whole levels of L-infinity
    piece, labels = smallest[norm], study.subject.labels
    entries = []
    for place, i in enumerate(np.argsort(piece["size"], kind="stable")[:FRAGILE]):
        size = float(piece["size"][i])
        if not np.isfinite(size):
            break
        row = study.rows[i]
        becomes = verdict(piece["served"][0][i], labels)
        before = verdict(study.clean.served[0][row], labels)
        picture = f"fragile/{place:02d}-{_file_stem(study.photos.files[row])}.webp"
        panels = [study.photos.pixels[row], piece["adversarial"][i]]
        captioned(panels, [words(before), words(becomes)]).save(folder / picture, quality=90)
        entries.append(
            {
                "file": study.photos.files[row],
                "label": labels[study.photos.labels[row]],
                "becomes": becomes["label"],
                "before": before,
                "after": becomes,
                "norm": norm,
                "size": size,
                "picture": picture,
            }
        )
    return entries


Candidate = tuple[str, int | None, npt.NDArray[np.uint8], npt.NDArray[Any], npt.NDArray[Any]]


def _candidates(
    study: Study,
    attacked: Sequence[Attacked],
    lesson: Piece,
    smallest: dict[str, Piece],
    i: int,
) -> list[Candidate | None]:
    """What each kind of attack made of the i-th attacked photo; None where it did not turn it."""
    label, target = int(study.photos.labels[study.rows[i]]), int(study.targets[study.rows[i]])
    found: list[Candidate | None] = []
    for attack in attacked:
        if attack.plan.key in ("pgd-linf-targeted", "apgd-dlr-linf", "pgd-l2-targeted"):
            e, piece = int(attack.piece["turned_at"][i]), attack.piece
            if e == len(attack.plan.epsilons):
                found.append(None)
                continue
            aim = target if attack.plan.targeted else None
            served, torched = piece["served"][e, :, i], piece["torch"][e, i]
            found.append((attack.plan.key, aim, piece["adversarial"][i], served, torched))
    for name, piece, aim in (("smallest-l2", smallest["l2"], None), ("descent", lesson, target)):
        served = piece["served"][:, i]
        said = int(served[0].argmax())
        turned = said != label if aim is None else said == aim
        made = (name, aim, piece["adversarial"][i], served, piece["torch"][i])
        found.append(made if turned else None)
    return found


def _file_stem(file: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", PurePosixPath(file).stem)[:60]
