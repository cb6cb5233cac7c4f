"""What every stage of one training needs, opened and checked before any of it begins."""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.errors import InvalidRequest, listed
from serving.modelspec import Preprocessing
from serving.repository import Repository
from serving.storage import open_repository
from trainer.backbones import Classifier, build
from trainer.batches import batch_count
from trainer.checkpoint import Checkpoints, differences
from trainer.compiler import require_compiler
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import NearDuplicate, PhotoData, load_data
from trainer.distributed import World
from trainer.errors import InvalidData
from trainer.exporter import Exporter
from trainer.heads import initialise_head
from trainer.known_photos import (
    NO_SPLIT,
    Split,
    count_known,
    part_in,
    split_beside,
    split_in,
)
from trainer.lettering import short_label
from trainer.listing import find_photos
from trainer.metrics import Floats
from trainer.mixing import NO_RECTANGLES
from trainer.mlflow_run import MlflowRun
from trainer.software import this_pawprint
from trainer.stages import frozen_stages, split_frozen
from trainer.teacher import Teacher, load_teacher
from trainer.tracking import Track
from trainer.tree import LOOSE, Found, labels_of, require_apart, same_below

_NAMED = 10  # near duplicates, at most
# Settings that the weights do not depend on, or that the digests of photos and weights stand for.
_NEUTRAL = {
    *("data", "weights", "out", "name", "cache", "checkpoints", "workers", "strict", "compile"),
    *("int8", "fp16", "max_accuracy_loss", "unfamiliar", "logs", "datasets"),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every stage of one training needs."""

    repository: Repository
    classifier: Classifier
    spec: Preprocessing
    data: PhotoData
    config: TrainConfig
    console: Console
    checkpoints: Checkpoints | None
    teacher: Teacher | None
    world: World
    exporter: Exporter
    recorded: MlflowRun | None = None
    track: Track | None = None  # for TensorBoard
    # [n, F] of `data.learnt_from`, where the backbone is as it was; None where it has learnt.
    features: Floats | None = None


def prepare(
    config: TrainConfig, console: Console, world: World, data: PhotoData | None = None
) -> Run:
    """Everything but the training: the net and the photos, opened and split.

    data: the photos, where settings that are the same in all that concerns them have opened them.
    Raises PawprintError where something is missing or wrong.
    """
    started = time.monotonic()
    _require_same_settings(config, world)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.epochs > 0:  # a head alone needs neither
        if config.amp == "fp16" and device.type == "cpu":
            raise InvalidRequest("amp fp16 needs a GPU, and there is none; use bf16 or fp32")
        if config.compile:
            require_compiler(device)
    _check_places(config)
    datasets = Path(config.datasets) if config.datasets else None
    files = find_photos(config.data, datasets, console.track)
    repository = open_repository(config.out)
    if world.leads:  # it alone publishes
        # Fails now, rather than after the training, where it can not be written or reached.
        with repository.staging(config.name):
            repository.versions(config.name)
    classes = len(labels_of(files))
    classifier = build(config.backbone, classes, config.size, config.weights, mirror=config.mirror)
    if config.dropout is None:
        config = dataclasses.replace(config, dropout=classifier.dropout.p)
    drawn = torch.Generator().manual_seed(config.seed)
    initialise_head(classifier.head, config.head_init, drawn)
    classifier.to(device).to(memory_format=torch.channels_last)
    if config.epochs > 0 and config.cutmix and not config.adversarial:
        _require_rectangles(classifier, config, console)
    spec = Preprocessing(size=config.size, interpolation=config.interpolation)
    teacher = None
    if config.teacher is not None:
        # One may be published, or promoted, while the processes ask which it is.
        named = config.teacher
        which = world.of_leader(lambda: "/".join(map(str, repository.find(named))))
        teacher = load_teacher(repository, which, labels_of(files))
        config = dataclasses.replace(config, teacher=teacher.name)
    earlier = NO_SPLIT
    if config.split_like is not None:
        like = config.split_like
        name, number = world.of_leader(lambda: repository.find(like))
        earlier = split_in(repository, repository.manifest(name, number))
        config = dataclasses.replace(config, split_like=f"{name}/{number}")
    if data is None:
        data = load_data(config, files, spec, console.track, earlier)
    _require_same(data, classifier, teacher, config, world)
    if config.epochs > 0:  # refuse now, rather than after the probe
        batch_count(len(data.splits["train"]), config.batch_size, world.size)
    _say_what_is_not_held_out(files, config, console)
    _say_what_was_found(data, console)
    if same := same_below(files):
        console.line(
            "Warning: the folders of these classes all hold the same folders, "
            f"{listed(same, _NAMED)}, and no photo beside them; if those are the classes, or "
            "splits, lay photos out as <class>/<photo> or train/<class>/<photo>"
        )
    _say_what_stays(earlier, files, data, config, console)
    if teacher is not None:
        _say_what_is_known(f"the teacher {teacher.name}", teacher.split, data, console)
    _say_what_is_known(f"the net in {config.weights}", split_beside(config.weights), data, console)
    return Run(
        repository=repository,
        classifier=classifier,
        spec=spec,
        data=data,
        config=config,
        console=console,
        checkpoints=_checkpoints(
            repository.root, classifier, data, config, teacher, console, world, started
        ),
        teacher=teacher,
        world=world,
        exporter=Exporter(config.size, console),
    )


def _require_same_settings(config: TrainConfig, world: World) -> None:
    """Raises InvalidRequest, in every process, unless all have the same: they would wait for each
    other for ever, or learn each its own."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NEUTRAL}
    # Whether there are any: the first process tells the others of what it finds in them.
    settings["checkpoints"] = {None: "", "none": "none"}.get(config.checkpoints, "DIR")
    # Whether there are any: from them a probe is solved first. Which, `_require_same` asks.
    settings["weights"] = "none" if config.weights == "none" else "pre-trained"
    settings |= {"name": config.name, "pawprint": this_pawprint()}
    first, *others = map(json.loads, _of_all(json.dumps(settings), world))
    for rank, other in enumerate(others, 1):
        if different := differences(first, other):
            raise InvalidRequest(
                f"the settings of process {rank} are not those of process 0: "
                f"{'; '.join(different)}; give all of them the same, as each chooses what is not "
                "given"
            )


def _require_same(
    data: PhotoData,
    classifier: Classifier,
    teacher: Teacher | None,
    config: TrainConfig,
    world: World,
) -> None:
    """Raises InvalidData, in every process, unless all have the same photos in the same splits, the
    same teacher and the same weights."""
    if differ := _unlike_first(data.describe().digest, world):
        raise InvalidData(
            f"the photos of process {listed(differ)} are not those of process 0, or not "
            "split in the same way; give all of them the same photos and settings"
        )
    if teacher is not None and (differ := _unlike_first(teacher.digest, world)):
        raise InvalidData(
            f"the teacher {teacher.name} of process {listed(differ)} is not that of process 0, but "
            "another version of that number; give all of them the same repository"
        )
    if config.weights == "none":  # drawn: to the last digit by processors of one kind alone
        return
    if world.size > 1 and (differ := _unlike_first(classifier.backbone_digest(), world)):
        raise InvalidData(
            f"the weights ({config.weights}) of process {listed(differ)} are not those of process "
            "0; give all of them the same"
        )


def _unlike_first(text: str, world: World) -> list[int]:
    """The processes whose `text` is not that of the first."""
    first, *others = _of_all(text, world)
    return [rank for rank, other in enumerate(others, 1) if other != first]


def _of_all(text: str, world: World) -> list[str]:
    """Each process's, in the order of their ranks."""
    every: list[str] = world.join(np.array([text])).tolist()
    return every


def _require_rectangles(classifier: Classifier, config: TrainConfig, console: Console) -> None:
    """Says where cutmix would be given vectors, so that mixup acts alone; raises InvalidRequest,
    now and not after the probe, where there is no mixup."""
    classifier.freeze(frozen_stages(classifier.backbone, config.thaw))
    prefix, _ = split_frozen(classifier.backbone, classifier.frozen, config.size)
    sample = torch.zeros(1, 3, config.size, config.size, device=classifier.head.weight.device)
    with torch.inference_mode():
        vectors = prefix(sample).dim() != 4
    classifier.freeze([])
    if not vectors:
        return
    if not config.mixup:
        raise InvalidRequest(f"{NO_RECTANGLES}, or --mixup")
    console.line(f"--cutmix has no part in this run: {NO_RECTANGLES}")


def _check_places(config: TrainConfig) -> None:
    """Raises InvalidRequest if what the training writes would lie among its photos, as a class."""
    for flag in ("out", "cache", "logs", "checkpoints", "datasets"):
        place = getattr(config, flag)
        if place and place != "none":
            require_apart(f"--{flag}", place, config.data)


def _checkpoints(
    root: Path,
    classifier: Classifier,
    data: PhotoData,
    config: TrainConfig,
    teacher: Teacher | None,
    console: Console,
    world: World,
    started: float,
) -> Checkpoints | None:
    if config.checkpoints == "none" or config.epochs == 0:
        return None
    settings = decisive_settings(classifier, data, config, teacher)
    if config.checkpoints is None:
        folder = root / ".checkpoints"
        return Checkpoints(folder, config.name, settings, tell=console.line, started=started)
    checkpoints = Checkpoints(Path(config.checkpoints), config.name, settings, started=started)
    world.of_leader(checkpoints.check)  # it alone writes
    return checkpoints


def decisive_settings(
    classifier: Classifier, data: PhotoData, config: TrainConfig, teacher: Teacher | None
) -> dict[str, Any]:
    """All that the trained weights depend on, as JSON."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NEUTRAL}
    settings["data"] = data.describe().digest
    settings["weights"] = classifier.backbone_digest()
    if teacher is not None:  # another repository may have another version of its name
        settings["teacher"] = f"{teacher.name} {teacher.digest[:16]}"
    settings["pawprint"] = this_pawprint()
    return settings


def _say_what_is_known(whom: str, split: Split, data: PhotoData, console: Console) -> None:
    known = count_known(data.splits["test"], split)
    if known:
        console.line(
            f"Warning: {known} of {len(data.splits['test'])} test photos have the content or the "
            f"names of photos that {whom} learnt from; if they are those, the test flatters: "
            "give both the same photos and --seed, --split-like, or folders train, val and test"
        )


def _say_what_is_not_held_out(
    files: Sequence[Found], config: TrainConfig, console: Console
) -> None:
    for split in ("val", "test"):
        share = f"{split}_fraction"
        asked = getattr(config, share) != getattr(TrainConfig, share)
        if asked and any(file.split == split for file in files):
            console.line(
                f"--{split}-fraction has no part in this run: the photos bring their own {split}"
            )


def _say_what_stays(
    earlier: Split,
    files: Sequence[Found],
    data: PhotoData,
    config: TrainConfig,
    console: Console,
) -> None:
    """Of `config.split_like`."""
    if config.split_like is None:
        return
    if all(any(file.split == split for file in files) for split in ("val", "test")):
        console.line(
            "--split-like has no part in this run: the photos bring their own val and test"
        )
        return
    part_of = part_in(earlier)
    stays = [
        part == split
        for split, photos in data.splits.items()
        for photo in photos
        if (part := part_of(photo)) is not None
    ]
    console.line(
        f"{len(stays)} of the photos were split for {config.split_like}: {sum(stays)} are in the "
        "same split"
    )


def _say_what_was_found(data: PhotoData, console: Console) -> None:
    counts = ", ".join(f"{len(photos)} {split}" for split, photos in data.splits.items())
    names = listed([short_label(label) for label in data.labels], _NAMED)
    console.line(f"Found {len(data.labels)} classes ({names}); photos: {counts}")
    loose = [item.file for item in data.left_out if item.reason == LOOSE]
    if others := len(data.left_out) - len(loose):
        console.line(f"Left out {others} files:")
        for item in data.left_out:
            if item.reason != LOOSE:
                console.line(f"  {item.file}: {item.reason}")
    if loose:
        console.line(
            f"Left out {len(loose)} photos that lie beside the class folders, in none: "
            f"{listed(loose, _NAMED)}"
        )
    if data.indistinct:
        console.line(
            "Photos of different classes look alike, so copies and bursts can't be told from them: "
            "photos are split one by one"
        )
    if data.together:
        console.line(
            f"{data.together} photos look like others of their class: such stay in one split"
        )
    _name(data.alike, "look like one in another split, which flatters:", console)
    _name(data.at_odds, "look like one of another class, so one label may be wrong:", console)


def _name(pairs: Sequence[NearDuplicate], what: str, console: Console) -> None:
    if not pairs:
        return
    console.line(f"{len(pairs)} photos {what}")
    for pair in pairs[:_NAMED]:
        console.line(f"  {pair.one.file} and {pair.other.file}")
    if len(pairs) > _NAMED:
        console.line(f"  and {len(pairs) - _NAMED} more; training.json will name them all")
