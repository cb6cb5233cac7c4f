"""One training run, from top to bottom: photos in, a published version out."""

import copy
import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.errors import InvalidRequest
from serving.modelspec import Preprocessing
from serving.repository import Repository
from serving.storage import open_repository
from trainer.adversarial import Adversary
from trainer.augment import Augmentation
from trainer.backbones import Calibrated, Classifier, build
from trainer.balance import photo_weights
from trainer.batches import batch_count
from trainer.calibration import fit_temperature
from trainer.checkpoint import Checkpoints
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData, load_data
from trainer.defence import parse_defence
from trainer.determinism import deterministic
from trainer.distributed import World, joined
from trainer.errors import FailedCheck
from trainer.exporter import Exporter
from trainer.features import FeatureNet, cache_of, extract, in_torch
from trainer.head_steps import solver_by_steps
from trainer.heads import initialise_head
from trainer.learner import Learner
from trainer.listing import find_photos
from trainer.metrics import chance_of_balanced_gain, chance_of_gain, mean_recall
from trainer.mlflow_run import MlflowRun, mlflow_run
from trainer.namesakes import namesakes
from trainer.pictures import for_augmentation
from trainer.probe import Head, Probe, Solver, fit_head, fit_probe
from trainer.publish import Fitted, Published, publish
from trainer.shards import is_shards
from trainer.split import Ints
from trainer.stages import frozen_stages
from trainer.teacher import Teacher, load_teacher
from trainer.tracking import Track, figures_of, figures_on_test, tracked
from trainer.training import Epoch, FineTuned, fine_tune
from trainer.tree import labels_of
from trainer.weights import digest_state

_NAMED = 10  # near duplicates, at most
SIGNIFICANT = 0.05  # chance below which a gain on val is believed
# Settings that the weights do not depend on, or that the digests of photos and weights stand for.
_NEUTRAL = {
    *("data", "weights", "out", "name", "cache", "checkpoints", "workers", "strict", "compile"),
    *("int8", "fp16", "max_accuracy_loss", "logs", "datasets"),
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


def train(config: TrainConfig, console: Console, world: World | None = None) -> Published | None:
    """Train, export, check, measure and publish one version.

    Under torchrun every process calls it; None in those that do not lead. world: where they have
    met already. Raises PawprintError (InvalidRequest, InvalidData, FailedCheck); then nothing is
    published.
    """
    started = time.monotonic()
    meeting = joined() if world is None else nullcontext(world)
    with meeting as world, deterministic(config.deterministic):
        run = prepare(config, console, world)
        name = run.config.name
        if not world.leads:
            _fit(run)
            world.after_leader(name)  # if it does not come so far, all are to be started again
            return None
        logs = Path(config.logs) if config.logs else run.repository.root / ".logs"
        with (
            mlflow_run(run.config, console, name) as recorded,
            tracked(logs, name, console.line) as track,
        ):
            run = dataclasses.replace(run, recorded=recorded, track=track)
            published = _fit_and_publish(run, started)
        world.after_leader(name)
        return published


def _fit(run: Run) -> Fitted:
    return _probe_then_fine_tune(run) if run.config.probes else _from_drawn_head(run)


def _fit_and_publish(run: Run, started: float) -> Published:
    fitted = _fit(run)
    run.classifier.to("cpu").to(memory_format=torch.contiguous_format)
    calibrated = Calibrated(run.classifier, fitted.temperature).eval()
    published = publish(
        run.repository,
        calibrated,
        run.data,
        run.spec,
        run.config,
        fitted,
        started,
        run.console,
        run.exporter,
    )
    if run.checkpoints is not None:
        run.checkpoints.delete()
    if run.track is not None:
        metrics = published.manifest.variants["fp32"].metrics
        run.track(figures_on_test(metrics), run.config.epochs)
    if run.recorded is not None:
        run.recorded.published(published)
    return published


def prepare(config: TrainConfig, console: Console, world: World) -> Run:
    """Everything but the training: the net and the photos, opened and split.

    Raises PawprintError where something is missing or wrong.
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.amp == "fp16" and device.type == "cpu":
        raise InvalidRequest("amp fp16 needs a GPU, and there is none; use bf16 or fp32")
    _check_places(config)
    datasets = Path(config.datasets) if config.datasets else None
    files = find_photos(config.data, datasets, console.track)
    repository = open_repository(config.out)
    # Fails now, rather than after the training, where it can not be written or reached.
    with repository.staging(config.name):
        repository.versions(config.name)
    classifier = build(config.backbone, len(labels_of(files)), config.size, config.weights)
    drawn = torch.Generator().manual_seed(config.seed)
    initialise_head(classifier.head, config.head_init, drawn)
    classifier.to(device).to(memory_format=torch.channels_last)
    spec = Preprocessing(size=config.size, interpolation=config.interpolation)
    teacher = None
    if config.teacher is not None:
        teacher = load_teacher(repository, config.teacher, labels_of(files))
        config = dataclasses.replace(config, teacher=teacher.name)
    data = load_data(config, files, spec, console.track)
    if config.epochs > 0:  # refuse now, rather than after the probe
        batch_count(len(data.splits["train"]), config.batch_size, world.size)
    _say_what_was_found(data, console)
    if teacher is not None:
        _say_what_it_knows(teacher, data, console)
    return Run(
        repository=repository,
        classifier=classifier,
        spec=spec,
        data=data,
        config=config,
        console=console,
        checkpoints=_checkpoints(repository.root, classifier, data, config, console, world),
        teacher=teacher,
        world=world,
        exporter=Exporter(config.size, console),
    )


def _check_places(config: TrainConfig) -> None:
    """Raises InvalidRequest if what the training writes would lie among its photos, as a class."""
    if not Path(config.data).is_dir() or is_shards(config.data):
        return
    data = Path(config.data).resolve()
    for flag in ("out", "cache", "logs", "checkpoints", "datasets"):
        place = getattr(config, flag)
        if not place or "://" in place or place == "none":
            continue
        inside = Path(place).resolve()
        if not inside.is_relative_to(data):
            continue
        if not any(part.startswith(".") for part in inside.relative_to(data).parts):
            raise InvalidRequest(
                f"--{flag} {place} lies in {config.data}, where each folder is a class; give "
                "another folder, beside that of the photos"
            )


def _checkpoints(
    root: Path,
    classifier: Classifier,
    data: PhotoData,
    config: TrainConfig,
    console: Console,
    world: World,
) -> Checkpoints | None:
    if config.checkpoints == "none" or config.epochs == 0:
        return None
    settings = decisive_settings(classifier, data, config)
    if config.checkpoints is None:
        return Checkpoints(root / ".checkpoints", config.name, settings, tell=console.line)
    checkpoints = Checkpoints(Path(config.checkpoints), config.name, settings)
    world.of_leader(checkpoints.check)  # it alone writes
    return checkpoints


def decisive_settings(
    classifier: Classifier, data: PhotoData, config: TrainConfig
) -> dict[str, Any]:
    """All that the trained weights depend on, as JSON."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NEUTRAL}
    settings["data"] = data.describe().digest
    settings["weights"] = digest_state(classifier.backbone.state_dict())
    return settings


def _from_drawn_head(run: Run) -> Fitted:
    """From scratch, or of a pre-trained net what is thawed."""
    freeze_early_stages(run)
    result = _fine_tune(run)
    scratch = run.config.weights == "none"
    if result.best.epoch == 0:
        other = "pre-trained --weights" if scratch else "--head-solver lbfgs"
        run.console.line(
            "Warning: no epoch did better on val than the net as it was drawn at random: it has "
            f"learnt nothing from {len(run.data.splits['train'])} photos; give it more of them, "
            f"more --epochs or {other}"
        )
    how = "from scratch" if scratch else "fine-tuned from a head drawn at random"
    if run.config.adversarial:
        how = f"{run.config.adversarial}, {how}"
    return _fitted(result, run.data, None, f"{how}, epoch {result.best.epoch}")


def freeze_early_stages(run: Run) -> None:
    """What is not to learn."""
    classifier = run.classifier
    classifier.freeze(frozen_stages(classifier.backbone, run.config.thaw))


def _probe_then_fine_tune(run: Run) -> Fitted:
    """A linear probe, then fine-tuning from it (LP-FT, Kumar et al. 2022, arXiv:2202.10054).

    Where fine-tuning does not do better on val than the probe by more than chance would (where
    classes are balanced: in mean recall), the probe is published: the best of several epochs on few
    photos looks better than it is. As val has then chosen nothing of it, that probe is fitted to
    train and val together.
    """
    data, console, classifier = run.data, run.console, run.classifier
    probe, targets = start_from_probe(run)
    history: tuple[Epoch, ...] = ()
    if run.config.epochs > 0:
        pretrained = copy.deepcopy(classifier.backbone.state_dict())
        result = _fine_tune(run)
        if run.config.adversarial:
            how = f"{run.config.adversarial} fine-tuning, epoch {result.best.epoch}"
            return _fitted(result, data, probe.penalty, how)
        chance = _chance_of_gain(result, data, run.config)
        if chance < SIGNIFICANT:
            how = f"fine-tuned, epoch {result.best.epoch}"
            if result.share < 1:
                how += f", {result.share:.0%} of the way from the probe"
            return _fitted(result, data, probe.penalty, how)
        console.line(
            f"Fine-tuning gained no more on {len(data.splits['val'])} val photos than chance may "
            f"give (p = {chance:.2f}): the linear probe is kept, fitted to train and val"
        )
        classifier.backbone.load_state_dict(pretrained)
        history = result.history
    _set_head(classifier, probe.head)
    return Fitted(
        how="linear probe",
        temperature=fit_temperature(probe.out_of_fold, targets),
        penalty=probe.penalty,
        history=history,
    )


def start_from_probe(run: Run) -> tuple[Probe, Ints]:
    """The probe on train and val, and the labels of those photos.

    The net is left with the same head fitted to train alone, ready for fine-tuning: the stages that
    are not to learn are frozen.
    """
    data, config, console, classifier = run.data, run.config, run.console, run.classifier
    photos = data.splits["train"] + data.splits["val"]
    targets = np.concatenate([data.targets("train"), data.targets("val")])
    cache = cache_of(config, classifier, console.line)
    open_net: Callable[[Classifier], FeatureNet] = in_torch
    if config.epochs == 0 and classifier.head.weight.device.type == "cpu":
        # The backbone stays as it is: its export is due anyway, and faster than PyTorch on a CPU.
        run.exporter.prepare(classifier)
        open_net = run.exporter.features
    with console.bar("Features of the frozen backbone", len(photos)) as advance:
        features = extract(
            classifier, photos, data.squares, cache, advance, open_net, world=run.world
        )
    classes = len(data.labels)
    generator = np.random.default_rng(config.seed)
    weights = photo_weights(targets, config.balance)
    solve = _solver(config)
    probe = fit_probe(features, targets, classes, generator, weights=weights, solve=solve)
    right = float(np.mean(probe.out_of_fold.argmax(axis=1) == targets))
    figures = {"accuracy/cross-validated": right, "penalty/probe": probe.penalty}
    said = f"Linear probe: penalty {probe.penalty:g}, cross-validated accuracy {right:.4f}"
    if weights is not None:
        recall = mean_recall(probe.out_of_fold, targets)
        said += f", mean recall {recall:.4f}"
        figures["mean recall/cross-validated"] = recall
    console.line(said)
    if run.track is not None:
        run.track(figures, 0)
    if config.epochs > 0:
        in_train = len(data.splits["train"])
        rows = features[:in_train].reshape(-1, features.shape[-1])
        repeated = np.repeat(targets[:in_train], features.shape[1])
        each = photo_weights(repeated, config.balance)
        _set_head(classifier, solve(rows, repeated, classes, probe.penalty, weights=each))
        freeze_early_stages(run)
    return probe, targets


def _solver(config: TrainConfig) -> Solver:
    if config.head_solver == "lbfgs":
        return fit_head
    return solver_by_steps(
        optimizer=config.optimizer,
        rate=config.head_rate,
        epochs=config.head_epochs,
        batch_size=config.batch_size,
        init=config.head_init,
        seed=config.seed,
    )


def make_learner(run: Run) -> Learner:
    """What trains the net as it is now: its frozen stages, and its head."""
    config = run.config
    pictures = for_augmentation(config.size, workers=config.workers)
    augmentation = Augmentation(
        pictures, config.size, config.seed, policy=config.augment, erasing=config.erasing
    )
    adversary = None
    if config.adversarial:
        adversary = Adversary(parse_defence(config.adversarial), config.seed)
    return Learner(
        run.classifier,
        run.data,
        augmentation,
        config,
        adversary=adversary,
        teacher=run.teacher,
        world=run.world,
    )


def _fine_tune(run: Run) -> FineTuned:
    config, console = run.config, run.console
    learner = make_learner(run)
    steps = config.epochs * len(run.data.splits["train"])
    with console.bar("Training", steps) as advance:

        def report(epoch: Epoch) -> None:
            console.line(_in_words(epoch, config.epochs))
            if run.track is not None:
                run.track(figures_of(epoch), epoch.epoch)
            if run.recorded is not None:
                run.recorded.epoch(epoch)

        result = fine_tune(learner, report, advance, checkpoints=run.checkpoints)
    if config.adversarial and result.best.epoch == 0:
        raise FailedCheck(
            f"training against {config.adversarial} made the net no better on val in "
            f"{config.epochs} epochs; try more --epochs, another --learning-rate or a smaller "
            "epsilon"
        )
    return result


def _in_words(epoch: Epoch, epochs: int) -> str:
    seen = "" if epoch.epoch == 0 else f"train loss {epoch.train_loss:.4f}  "
    robust = epoch.val_robust_accuracy
    recall = epoch.val_mean_recall
    even = "" if recall is None else f"  mean recall {recall:.4f}"
    withstood = "" if robust is None else f"  under attack {robust:.4f}"
    return (
        f"Epoch {epoch.epoch}/{epochs}: {seen}val loss {epoch.val_loss:.4f}  "
        f"val accuracy {epoch.val_accuracy:.4f}{even}{withstood}"
    )


def _chance_of_gain(result: FineTuned, data: PhotoData, config: TrainConfig) -> float:
    scores, targets = (result.first_logits, result.val_logits), data.targets("val")
    if config.balance == "none":
        return chance_of_gain(*scores, targets)
    return chance_of_balanced_gain(*scores, targets, np.random.default_rng(config.seed))


def _fitted(result: FineTuned, data: PhotoData, penalty: float | None, how: str) -> Fitted:
    return Fitted(
        how=how,
        temperature=fit_temperature(result.val_logits, data.targets("val")),
        penalty=penalty,
        history=result.history,
    )


def _set_head(classifier: Classifier, head: Head) -> None:
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(head.weight))
        classifier.head.bias.copy_(torch.from_numpy(head.bias))


def _say_what_it_knows(teacher: Teacher, data: PhotoData, console: Console) -> None:
    known = namesakes([photo.file for photo in data.splits["test"]], teacher.split)
    if known:
        console.line(
            f"Warning: {known} of {len(data.splits['test'])} test photos have the names of photos "
            f"that the teacher {teacher.name} learnt from; if they are those, the test flatters: "
            "give both the same photos and --seed, or folders train, val and test"
        )


def _say_what_was_found(data: PhotoData, console: Console) -> None:
    counts = ", ".join(f"{len(photos)} {split}" for split, photos in data.splits.items())
    console.line(f"Found {len(data.labels)} classes; photos: {counts}")
    if data.left_out:
        console.line(f"Left out {len(data.left_out)} files:")
        for item in data.left_out:
            console.line(f"  {item.file}: {item.reason}")
    if data.alike:
        console.line(f"{len(data.alike)} photos look like one in another split, which flatters:")
        for pair in data.alike[:_NAMED]:
            console.line(f"  {pair.one.file} and {pair.other.file}")
        if len(data.alike) > _NAMED:
            console.line(f"  and {len(data.alike) - _NAMED} more; training.json will name them all")
