"""One analysis from start to end: photos, pieces, figures, pictures, and the whole attached."""

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL
import torch

from serving.errors import PawprintError, Unavailable
from serving.repository import Repository
from trainer.alone import only_one
from trainer.analysis import assemble, corruptions, report
from trainer.analysis.gallery import show_to_server, write_adversarial, write_fragile
from trainer.analysis.inside import write_looks, write_sees
from trainer.analysis.over_grpc import Server, ServerFailed
from trainer.analysis.photos import Photos, at_random, load_photos
from trainer.analysis.pictures import captioned, png_bytes
from trainer.analysis.robustness import worst_case
from trainer.analysis.sanity import check_all
from trainer.analysis.settings import BUDGETS, REFERENCE_EPSILON, Budget, k255
from trainer.analysis.strangers import pictures_below
from trainer.analysis.study import LESSON_STEP_SIZE, Study
from trainer.analysis.subject import load_subject
from trainer.analysis.trust import Answers, attacked_section, most_photos, trust_section
from trainer.analysis.visions import Visions
from trainer.analysis.workspace import Task, Workspace, run_tasks
from trainer.console import Console
from trainer.errors import FailedCheck
from trainer.packages import ONNX_RUNTIMES, versions_of
from trainer.software import digest_code

SCHEMA_VERSION = 1
SMALLEST = {
    "linf": "FMN (Pintor et al. 2021, arXiv:2102.12827), then fewer levels by bisection with PGD",
    "l2": "FMN (Pintor et al. 2021, arXiv:2102.12827), then bisected",
}
CORRUPTIONS = "The 15 kinds of ImageNet-C (Hendrycks & Dietterich 2019, arXiv:1903.12261)"
_MADE_BY = ("code", "libraries")  # what of an analysis' key its user does not ask for
_WAIT_S = 0.2  # between looks for the pieces of other processes


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What to analyse and how thoroughly; all that the figures depend on."""

    data: str
    datasets: Path | None = None  # folder of data sets by name; None: in the user's cache
    budget: str = "standard"
    seed: int = 0
    photos: int | None = None  # at most so many; None: as the budget says
    linf: tuple[float, ...] | None = None  # epsilons; None: as the budget says
    l2: tuple[float, ...] | None = None
    strangers: str | None = None  # folder of pictures of none of the classes
    ideal: tuple[str, ...] | None = None  # classes to draw; None: all
    recipe: str = "fourier"
    device: str = "cpu"
    workers: int = 2

    def thoroughness(self) -> Budget:
        """The budget with what was asked for in its place."""
        budget = BUDGETS[self.budget]
        return dataclasses.replace(
            budget,
            photos=self.photos or budget.photos,
            linf=tuple(sorted({*self.linf, REFERENCE_EPSILON})) if self.linf else budget.linf,
            l2=self.l2 or budget.l2,
        )


def analyse(
    repository: Repository,
    name: str,
    version: int,
    config: AnalysisConfig,
    *,
    server: Server | None = None,
    rank: int = 0,
    processes: int = 1,
    console: Console,
) -> dict[str, Any] | None:
    """Analyse a published version and attach the result to it; returns the report (rank 0 only).

    Raises NotFound, BrokenVersion, InvalidData, InvalidRequest, FailedCheck (no photo is right),
    ServerFailed (before anything is computed, or, where the server fails later, once the report is
    attached without its verdicts), and Unavailable, which says where what is finished is kept if a
    bucket does not take the report.
    The version keeps, whatever happens, the analysis that it had until the new one is whole.
    """
    start = time.monotonic()
    subject = load_subject(repository, name, version, torch.device(config.device))
    budget = config.thoroughness()
    load = partial(
        load_photos,
        config.data,
        repository,
        subject.manifest,
        seed=config.seed,
        workers=config.workers,
        datasets=config.datasets,
    )
    photos = load(limit=budget.photos)
    strangers = None
    if config.strangers is not None:
        strangers = pictures_below(
            config.strangers,
            subject.manifest.preprocessing,
            limit=budget.photos,
            seed=config.seed,
            workers=config.workers,
        )
    study = Study(subject, photos, budget, config.seed, strangers)
    if not len(study.rows):
        raise FailedCheck(
            f"{name}/{version} is wrong on all {len(photos.labels)} photos of {config.data}; "
            "is this the data it was made for?"
        )
    visions = Visions(subject, budget, config.ideal, config.recipe, config.seed)
    workspace = Workspace(repository.root / name, _key(repository, study, config))
    tasks = [*study.tasks(), *visions.tasks()]
    if rank != 0:
        run_tasks(tasks, workspace, rank=rank, processes=processes, done=lambda _: None)
        return None
    # Another process that does the same would take the pieces away when it is done.
    with only_one(workspace.folder / "lock", f"analysing {name}/{version} in the same way"):
        most = None if budget.photos is None else most_photos(photos.pixels.shape[1])
        more = load(limit=most, draw=at_random, once=True)
        _say_what_was_found(study, more, console)
        answers = Answers.of(subject, more)
        del more  # their pixels: the analysis may take hours
        if server is not None:  # now, and not after hours
            server.verdicts([png_bytes(photos.pixels[0])])
        begun = any(workspace.has(task.name) for task in tasks)
        if not begun and workspace.begun_by_others(_MADE_BY):
            console.line(
                "An unfinished analysis like this one was begun by other code, or with other "
                "versions of torch and the like: this one starts anew"
            )
        earlier_s = sum(workspace.seconds(task.name) for task in tasks if workspace.has(task.name))
        with console.bar("Analysing", len(tasks)) as advance:
            finished = 0

            def look(note: str) -> None:
                """Count what is on disk: pieces of an earlier run and of other processes, too."""
                nonlocal finished
                now = sum(workspace.has(task.name) for task in tasks)
                advance(now - finished, note)
                finished = now

            look("")

            def told(task: Task) -> None:
                look(task.name)

            run_tasks(tasks, workspace, rank=rank, processes=processes, done=told)
            while finished < len(tasks):
                # Another may have ended, or may be on a machine that has another folder.
                run_tasks(tasks, workspace, rank=0, processes=1, done=told)
                look("waiting for the other processes")
                time.sleep(_WAIT_S)
        try:
            with repository.staging(name) as folder:
                made = _report(repository, study, answers, visions, workspace, folder, config)
                made["run"]["seconds"] = time.monotonic() - start + earlier_s
                failed = _shown(folder, made["adversarial"], server)
                _write_json(folder / "report.json", made)
                _write_json(folder / "summary.json", summary(made))
                _write_json(folder / "trust.json", trust(made))
                (folder / "report.html").write_text(report.render(made, folder), encoding="utf-8")
                repository.attach_analysis(name, version, folder)
        except Unavailable as error:  # a bucket, after what may be hours
            raise Unavailable(
                f"{error}; what is finished is kept in {workspace.folder}, from where the same "
                "command goes on"
            ) from error.__cause__
        workspace.remove()
    if failed is not None:
        raise ServerFailed(f"{failed}; the report is stored, without the server's verdicts")
    return made


def _shown(
    folder: Path, adversarial: Sequence[dict[str, Any]], server: Server | None
) -> PawprintError | None:
    """What went wrong with a server that was to see the adversarial images."""
    if server is not None:
        try:
            show_to_server(folder, adversarial, server)
        except PawprintError as error:
            return error
    return None


def _say_what_was_found(study: Study, more: Photos, console: Console) -> None:
    photos, wrong = study.photos, int(np.sum(~study.clean.right))
    console.line(
        f"{len(photos.labels)} photos of {photos.folder}: {len(study.rows)} are attacked, {wrong} "
        "are wrong from the start and count as not robust"
    )
    again = f"; {more.alike} more look like one of those" if more.alike else ""
    console.line(
        f"{len(more.labels)} show from which probability on an answer may be believed{again}"
    )
    if known := max(photos.known, more.known):
        console.line(
            f"Warning: {known} have the content or the names of photos that the version was "
            "trained on; if they are those, every figure flatters: give photos that it has not seen"
        )
    for item in dict.fromkeys(more.left_out + photos.left_out):
        console.line(f"left out: {item.file}: {item.reason}")


def summary(made: dict[str, Any]) -> dict[str, Any]:
    """The headline figures, as the server's GetModel returns them."""
    return {
        "photos": made["data"]["photos"],
        "clean_accuracy": made["clean"]["fp32"]["accuracy"],
        "robust_accuracy": [
            {"norm": norm, "epsilon": point["epsilon"], "accuracy": point["accuracy"]}
            for norm, points in made["worst_case"].items()
            for point in points
        ],
        "corruption_accuracy": made["corruptions"]["mean_accuracy"],
        "created": made["run"]["created"],
    }


def trust(made: dict[str, Any]) -> dict[str, Any]:
    """From which probability on an answer may be believed, as the server's GetModel returns it."""
    return {
        "photos": made["trust"]["photos"],
        "confidence": made["trust"]["confidence"],
        "thresholds": [
            {
                "precision": row["precision"],
                "accuracy": row["accuracy"],
                "probability": row["threshold"],
                "answered": row["answered"],
            }
            for row in made["trust"]["thresholds"]
            if row["threshold"] is not None
        ],
    }


def _report(
    repository: Repository,
    study: Study,
    answers: Answers,
    visions: Visions,
    workspace: Workspace,
    folder: Path,
    config: AnalysisConfig,
) -> dict[str, Any]:
    subject, clean = study.subject, study.clean
    manifest, labels, precisions = subject.manifest, subject.labels, subject.precisions
    attacked = study.attacked(workspace)
    smallest = {norm: study.smallest(workspace, norm) for norm in SMALLEST}
    # An attack within a large ball may end on a picture that lies within a smaller one.
    originals = study.photos.pixels[study.rows]
    nearest = {n: assemble.nearest(p, attacked, n, originals) for n, p in smallest.items()}
    lesson, surest = study.lesson(workspace), study.surest(workspace)
    pieces = {kind: workspace.load(f"corruption/{kind}") for kind in corruptions.KINDS}
    strangers = {kind: workspace.load(f"stranger/{kind}") for kind in study.strangers}
    corrupted, survived = assemble.corruption_section(pieces, clean, CORRUPTIONS)
    outcome = assemble.outcome_at_reference(attacked, clean, nearest)
    e = study.budget.linf.index(REFERENCE_EPSILON)
    robust = worst_case([*assemble.left_standing(attacked, clean, nearest, "linf", e).values()])
    pgd = next(a for a in attacked if a.plan.key == "pgd-linf")
    made: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "backbone": manifest.backbone,
            "mirror": bool(manifest.configuration.get("mirror")),
            "labels": list(labels),
            "created": manifest.created,
            "manifest_sha256": repository.manifest_digest(manifest.name, manifest.version),
            "precisions": list(precisions),
            "defence": manifest.configuration.get("adversarial") or "none",
            "pretrained": manifest.configuration.get("weights") != "none",
        },
        "data": assemble.data_section(study.photos, labels),
        "reference": {"norm": "linf", "epsilon": REFERENCE_EPSILON},
        "clean": assemble.clean_section(clean, precisions),
        "attacks": [
            *(assemble.attack_section(a, clean, precisions) for a in attacked),
            *(
                assemble.smallest_as_attack(
                    norm, piece, clean, study.epsilons(norm), precisions, SMALLEST[norm]
                )
                for norm, piece in smallest.items()
            ),
        ],
        "worst_case": assemble.worst_section(attacked, clean, nearest),
        "smallest": assemble.smallest_section(nearest, SMALLEST),
        "descent": assemble.descent_section(lesson, study.targets[study.rows], study.budget),
        "confusion": assemble.confusion_section(clean, outcome, labels),
        "per_class": assemble.class_section(clean, robust, outcome, survived, labels),
        "corruptions": corrupted,
        "calibration": assemble.calibration_section(clean, surest),
        "trust": trust_section(
            answers,
            {kind: piece["served"] for kind, piece in strangers.items()},
            subject.familiarity,
            {k: piece["familiarity"] for k, piece in strangers.items() if "familiarity" in piece},
        ),
        "adversarial": write_adversarial(
            folder,
            study,
            attacked,
            lesson,
            smallest,
            count=study.budget.triptychs,
        ),
        "fragile": write_fragile(folder, study, nearest),
        "looks": write_looks(folder, study, pgd),
        "sees": write_sees(folder, study),
        **visions.write(folder, workspace),
    }
    corrupted["examples"] = _write_examples(folder, "corruptions", pieces)
    made["trust"]["examples"] = _write_examples(folder, "strangers", strangers)
    if subject.familiarity is not None:
        nudged = {
            f"PGD within {k255(REFERENCE_EPSILON)}, to its last step": surest,
            "the search for the smallest perturbation, L∞": smallest["linf"],
            "the search for the smallest perturbation, L2": smallest["l2"],
            "plain descent, of any size": lesson,
        }
        made["trust"]["familiarity"]["attacked"] = attacked_section(
            subject.familiarity, nudged, study.photos.labels[study.rows]
        )
    probe = {k: float(v) for k, v in workspace.load("probe").items() if k != "seconds"}
    agreement = assemble.agreement(clean, attacked)
    made["sanity"] = check_all(made, probe | agreement)
    settings = {**dataclasses.asdict(study.budget), "descent_step_size": LESSON_STEP_SIZE}
    made["run"] = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "budget": config.budget,
        "recipe": config.recipe,
        "device": config.device,
        "settings": settings,
        "software": versions_of(("pawprint", "torch", "torchvision", *ONNX_RUNTIMES, "pillow")),
    }
    return made


def _write_examples(folder: Path, of: str, pieces: dict[str, Any]) -> list[dict[str, str]]:
    (folder / of).mkdir()
    examples = []
    for kind, piece in pieces.items():
        picture = f"{of}/{kind}.webp"
        captioned([piece["example"]], [""], side=160).crop((0, 0, 160, 160)).save(
            folder / picture, quality=85
        )
        examples.append({"kind": kind, "picture": picture})
    return examples


def _key(repository: Repository, study: Study, config: AnalysisConfig) -> dict[str, Any]:
    manifest = study.subject.manifest
    settings = dataclasses.asdict(config)
    for name in ("data", "datasets", "strangers", "workers"):
        del settings[name]
    return {
        "version": manifest.version,
        "manifest": repository.manifest_digest(manifest.name, manifest.version),
        "photos": study.photos.digest,
        "strangers": study.strangers_digest,
        "settings": settings,
        "budget": dataclasses.asdict(config.thoroughness()),
        "code": digest_code(),
        "libraries": [module.__version__ for module in (torch, onnxruntime, np, PIL)],
    }


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
