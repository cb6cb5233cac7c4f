"""The ideal images of a report: drawn in batches of classes, judged as served, saved as PNG."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serving.percent import percent
from trainer.analysis.ideal import FourierRecipe, IdealImages, LessonRecipe, fourier, lesson
from trainer.analysis.objectives import total_variation
from trainer.analysis.pictures import captioned, png_bytes, save_animation, strip
from trainer.analysis.seeds import generator_of
from trainer.analysis.settings import IDEAL_GOAL, Budget
from trainer.analysis.subject import Subject
from trainer.analysis.workspace import Piece, Task, Workspace

BATCH = 8  # classes drawn together


class Visions:
    def __init__(
        self,
        subject: Subject,
        budget: Budget,
        classes: Sequence[str] | None,
        recipe: str,
        seed: int,
    ) -> None:
        """classes: those to draw; None for all. recipe: "fourier" or "lesson"."""
        self._subject, self._budget, self._recipe, self._seed = subject, budget, recipe, seed
        labels = subject.labels
        chosen = labels if classes is None else [x for x in labels if x in classes]
        self._classes = np.array([labels.index(label) for label in chosen], np.int64)
        self._batches = [self._classes[i : i + BATCH] for i in range(0, len(self._classes), BATCH)]

    def tasks(self) -> list[Task]:
        tasks = [
            Task(name=f"ideal/{b}", run=partial(self._ideal, b)) for b in range(len(self._batches))
        ]
        if len(self._classes):
            tasks.append(Task(name="ablation", run=self._ablation))
        return tasks

    def write(self, folder: Path, workspace: Workspace) -> dict[str, Any]:
        """Save every picture; returns the sections `ideal`, `ideal_goal` and `ablation`."""
        entries: list[dict[str, Any]] = []
        if len(self._classes):
            (folder / "ideal").mkdir()
        for b, classes in enumerate(self._batches):
            piece = workspace.load(f"ideal/{b}")
            entries += [self._save(folder, piece, i, int(k)) for i, k in enumerate(classes)]
        return {
            "ideal_goal": IDEAL_GOAL,
            "ideal": entries,
            "ablation": self._save_ablation(folder, workspace) if entries else None,
        }

    # ---

    def _ideal(self, b: int) -> Piece:
        """pictures, uint8 [n, S, S, 3]; served, float32 [V, n, K]; the frames and the curve."""
        if self._recipe == "lesson":
            recipe = LessonRecipe(steps=self._budget.lesson_ideal_steps)
            return self._drawn(partial(lesson, recipe=recipe), self._batches[b], f"ideal/{b}")
        fast = FourierRecipe(
            coarse_steps=self._budget.ideal_coarse_steps, steps=self._budget.ideal_steps
        )
        return self._drawn(partial(fourier, recipe=fast), self._batches[b], f"ideal/{b}")

    def _ablation(self) -> Piece:
        """The lesson's recipe for one class with and without total variation."""
        full = LessonRecipe(steps=self._budget.lesson_ideal_steps)
        pieces = [
            self._drawn(partial(lesson, recipe=recipe), self._classes[:1], "ablation")
            for recipe in (replace(full, total_variation=0.0), full)
        ]
        return {
            "pictures": np.concatenate([piece["pictures"] for piece in pieces]),
            "served": np.concatenate([piece["served"] for piece in pieces], axis=1),
        }

    def _drawn(self, draw: Any, classes: npt.NDArray[np.int64], name: str) -> Piece:
        subject = self._subject
        made: IdealImages = draw(
            subject.model,
            torch.from_numpy(classes).to(subject.device),
            subject.manifest.preprocessing.size,
            generator=generator_of(self._seed, name),
        )
        pictures = made.pictures.cpu().numpy()
        return {
            "pictures": pictures,
            "served": subject.judge(pictures)[0],
            "frames": made.frames.cpu().numpy(),
            "frame_steps": np.array(made.frame_steps),
            "curve": made.curve.cpu().numpy(),
            "curve_steps": np.array(made.curve_steps),
        }

    def _save(self, folder: Path, piece: Piece, i: int, k: int) -> dict[str, Any]:
        label, goal = self._subject.labels[k], IDEAL_GOAL
        stem = f"ideal/{k:03d}-{re.sub(r'[^A-Za-z0-9_-]', '_', label)[:60]}"
        (folder / f"{stem}.png").write_bytes(png_bytes(piece["pictures"][i]))
        frames, steps = list(piece["frames"][:, i]), piece["frame_steps"]
        curve = list(zip(piece["curve_steps"].tolist(), piece["curve"][:, i].tolist(), strict=True))
        save_animation(frames, folder / f"{stem}.webp")
        captions = [f"step {step}" for step in steps.tolist()]
        strip(frames, captions).save(folder / f"{stem}-strip.webp", quality=85)
        probability = {
            precision: float(piece["served"][v, i, k])
            for v, precision in enumerate(self._subject.precisions)
        }
        return {
            "label": label,
            "recipe": self._recipe,
            "steps": int(steps[-1]),
            "probability": probability,
            "reached": probability["fp32"] >= goal,
            "picture": f"{stem}.png",
            "animation": f"{stem}.webp",
            "strip": f"{stem}-strip.webp",
            "curve": [[step, round(p, 6)] for step, p in curve],
        }

    def _save_ablation(self, folder: Path, workspace: Workspace) -> dict[str, Any]:
        piece, k = workspace.load("ablation"), int(self._classes[0])
        images = self._subject.images(piece["pictures"])
        variation = total_variation(images).tolist()
        probability = piece["served"][0][:, k].tolist()
        captions = ablation_captions(probability)
        picture = "ideal/ablation.webp"
        captioned(list(piece["pictures"]), captions, side=320).save(folder / picture, quality=90)
        sides = [
            {"probability": p, "total_variation": v}
            for p, v in zip(probability, variation, strict=True)
        ]
        return {
            "label": self._subject.labels[k],
            "picture": picture,
            "without": sides[0],
            "with": sides[1],
        }


def ablation_captions(probability: Sequence[float]) -> list[str]:
    """Under the picture without total variation and the one with it; two lines, so that both fit
    whole."""
    words = ("without total variation", "with total variation")
    return [f"{w}\n{percent(p)}" for w, p in zip(words, probability, strict=True)]
