"""An analysis as a list of pieces, each finished on disk before the next: what is done stays done.

Processes under torchrun share the pieces out by number; every random draw of a piece comes from the
seed and the piece's own name, so who computes it, and after what, makes no difference.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from trainer.analysis import sweep
from trainer.analysis.assemble import Attacked, Clean
from trainer.analysis.corruptions import KINDS, SEVERITIES, corrupt
from trainer.analysis.photos import Photos
from trainer.analysis.plans import plans
from trainer.analysis.probes import PHOTOS, probe
from trainer.analysis.seeds import generator_of, number_of
from trainer.analysis.settings import Budget
from trainer.analysis.strangers import GIVEN, STRANGERS
from trainer.analysis.subject import Subject
from trainer.analysis.workspace import Piece, Task, Workspace

CHUNK = 32  # photos attacked together
LESSON_STEP_SIZE = 1.0


def chunks_of(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """[n] -> parts that are attacked together: the graph of all at once would not fit into
    memory."""
    return [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]


class Study:
    """Attacks, smallest perturbations, corruptions and probes of one version on given photos."""

    def __init__(
        self,
        subject: Subject,
        photos: Photos,
        budget: Budget,
        seed: int,
        strangers: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """strangers: uint8 [n, S, S, 3], pictures of none of the classes, beside those drawn."""
        self.subject, self.photos, self.budget, self.seed = subject, photos, budget, seed
        self._given = strangers
        served, torched = subject.judge(photos.pixels)
        self.clean = Clean(served=served, torched=torched, labels=photos.labels)
        self.rows = np.flatnonzero(self.clean.right)  # the photos to attack
        self.chunks = chunks_of(self.rows)
        self.targets = sweep.choose_targets(photos.labels, len(subject.labels), seed)
        self.plans = plans(budget)

    def tasks(self) -> list[Task]:
        tasks = [
            Task(name=f"attack/{plan.key}/{c}", run=partial(self._attack, plan, c))
            for plan in self.plans
            for c in range(len(self.chunks))
        ]
        for c in range(len(self.chunks)):
            tasks.append(Task(name=f"lesson/{c}", run=partial(self._lesson, c)))
            tasks.append(Task(name=f"surest/{c}", run=partial(self._surest, c)))
            for norm in ("linf", "l2"):
                run = partial(self._smallest, norm, c)
                tasks.append(Task(name=f"smallest/{norm}/{c}", run=run))
        tasks += [
            Task(name=f"corruption/{kind}", run=partial(self._corruption, kind)) for kind in KINDS
        ]
        tasks += [
            Task(name=f"stranger/{kind}", run=partial(self._stranger, kind))
            for kind in self.strangers
        ]
        if len(self.rows):
            tasks.append(Task(name="probe", run=self._probe))
        return tasks

    @property
    def strangers_digest(self) -> str:
        return "" if self._given is None else hashlib.sha256(self._given.tobytes()).hexdigest()

    @property
    def strangers(self) -> tuple[str, ...]:
        """Kinds of pictures of none of the classes."""
        return (*STRANGERS, *([GIVEN] if self._given is not None else []))

    def epsilons(self, norm: str) -> tuple[float, ...]:
        return self.budget.linf if norm == "linf" else self.budget.l2

    # --- what is made of the finished pieces

    def attacked(self, workspace: Workspace) -> list[Attacked]:
        return [self._joined(plan, workspace) for plan in self.plans]

    def _joined(self, plan: sweep.Plan, workspace: Workspace) -> Attacked:
        pieces = [workspace.load(f"attack/{plan.key}/{c}") for c in range(len(self.chunks))]
        return Attacked(
            plan=plan,
            piece=join(pieces, {"served": 2, "torch": 1, "adversarial": 0, "turned_at": 0}),
            targets=self.targets[self.rows],
            seconds=float(sum(piece["seconds"] for piece in pieces)),
        )

    def lesson(self, workspace: Workspace) -> Piece:
        return self._unbounded(workspace, "lesson")

    def surest(self, workspace: Workspace) -> Piece:
        return self._unbounded(workspace, "surest")

    def smallest(self, workspace: Workspace, norm: str) -> Piece:
        return self._unbounded(workspace, f"smallest/{norm}")

    def _unbounded(self, workspace: Workspace, name: str) -> Piece:
        pieces = [workspace.load(f"{name}/{c}") for c in range(len(self.chunks))]
        axes = {key: 1 if key == "served" else 0 for key in pieces[0] if key != "seconds"}
        return join(pieces, axes) | {"seconds": np.sum([piece["seconds"] for piece in pieces])}

    # --- the pieces

    def _attack(self, plan: sweep.Plan, c: int) -> Piece:
        rows = self.chunks[c]
        generator = generator_of(self.seed, f"attack/{plan.key}/{c}")
        pictures, labels = self.photos.pixels[rows], self.photos.labels[rows]
        return sweep.sweep(plan, self.subject, pictures, labels, self.targets[rows], generator)

    def _smallest(self, norm: str, c: int) -> Piece:
        rows = self.chunks[c]
        return sweep.smallest(
            norm,  # type: ignore[arg-type]
            self.subject,
            self.photos.pixels[rows],
            self.photos.labels[rows],
            self.budget.minimal_steps,
        )

    def _lesson(self, c: int) -> Piece:
        rows = self.chunks[c]
        return sweep.plain_descent(
            self.subject,
            self.photos.pixels[rows],
            self.photos.labels[rows],
            self.targets[rows],
            self.budget.lesson_steps,
            LESSON_STEP_SIZE,
        )

    def _surest(self, c: int) -> Piece:
        rows = self.chunks[c]
        return sweep.surest(
            self.subject,
            self.photos.pixels[rows],
            self.photos.labels[rows],
            self.budget.pgd_steps,
        )

    def _corruption(self, kind: str) -> Piece:
        """served: float32 [5, n, K]; example: uint8 [S, S, 3], the first photo at severity 3."""
        served = []
        for severity in SEVERITIES:
            generator = np.random.default_rng(number_of(self.seed, f"corruption/{kind}/{severity}"))
            pictures = np.stack(
                [corrupt(picture, kind, severity, generator) for picture in self.photos.pixels]
            )
            served.append(self.subject.verdict(pictures))
            if severity == 3:
                example = pictures[0]
        return {"served": np.stack(served), "example": example}

    def _stranger(self, kind: str) -> Piece:
        """served: float32 [n, K]; familiarity: float32 [n], if it is told; example: uint8
        [S, S, 3]."""
        generator = np.random.default_rng(number_of(self.seed, f"stranger/{kind}"))
        if self._given is not None and kind == GIVEN:
            pictures = self._given
        else:
            draw = STRANGERS[kind]
            pictures = np.stack([draw(photo, generator) for photo in self.photos.pixels])
        served, familiarity = self.subject.told(pictures)
        piece = {"served": served, "example": pictures[0]}
        return piece if familiarity is None else {**piece, "familiarity": familiarity}

    def _probe(self) -> Piece:
        rows = spread_over(self.photos.labels, self.rows, PHOTOS)
        figures = probe(
            self.subject,
            self.photos.pixels[rows],
            self.photos.labels[rows],
            self.budget,
            generator_of(self.seed, "probe"),
        )
        return {name: np.array(value) for name, value in figures.items()}


def join(pieces: Sequence[Piece], axes: dict[str, int]) -> Piece:
    """Chunks of photos put together again along each array's own axis of photos."""
    return {
        key: np.concatenate([piece[key] for piece in pieces], axis) for key, axis in axes.items()
    }


def spread_over(
    labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """At most `count` of `rows`, one class after the other in turn, ascending."""
    rank = np.zeros(len(rows), np.int64)
    for label in np.unique(labels[rows]):
        own = labels[rows] == label
        rank[own] = np.arange(own.sum())
    return np.sort(rows[np.lexsort((rows, rank))[:count]])
