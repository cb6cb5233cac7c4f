"""The ways of transfer learning: a probe, fine-tuning from it, or a head drawn at random."""

import copy
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch

from trainer.adversarial import Adversary
from trainer.augment import Augmentation
from trainer.backbones import Classifier
from trainer.balance import photo_weights
from trainer.calibration import fit_temperature
from trainer.config import TrainConfig
from trainer.data import PhotoData, targets_of
from trainer.defence import parse_defence
from trainer.errors import FailedCheck
from trainer.features import FeatureNet, cache_of, extract, in_torch
from trainer.graph_cache import graph_cache_of
from trainer.head_steps import solver_by_steps
from trainer.label_errors import say_label_errors, with_label_errors
from trainer.learner import Learner
from trainer.metrics import Floats, chance_of_balanced_gain, chance_of_gain, mean_recall
from trainer.pictures import for_augmentation
from trainer.preparing import Run
from trainer.probe import MOST_FITS, Head, Probe, Solver, fit_head, fit_probe
from trainer.results import Fitted
from trainer.split import Ints
from trainer.stages import frozen_stages
from trainer.timm_nets import PREFIX
from trainer.tracking import figures_of
from trainer.training import Epoch, FineTuned, fine_tune

EXPORTED_FROM = 1000  # photos whose features gain what an export costs that is not published
SIGNIFICANT = 0.05  # chance below which a gain on val is believed


def fit(run: Run) -> tuple[Run, Fitted]:
    """Train the net of the run, in place, in the way that its settings ask for.

    The run comes back with what was found out of its photos: those whose label is probably wrong.
    Raises PawprintError (FailedCheck, InvalidData).
    """
    if run.config.epochs > 0 and run.config.backbone.startswith(PREFIX):
        # Some of timm can't be exported: now, rather than after the last epoch. Torchvision's can.
        classifier = copy.deepcopy(run.classifier).cpu()
        _prepare_export(run, classifier, functools.cache(classifier.backbone_digest))
    return _probe_then_fine_tune(run) if run.config.probes else (run, _from_drawn_head(run))


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


def _probe_then_fine_tune(run: Run) -> tuple[Run, Fitted]:
    """A linear probe, then fine-tuning from it (LP-FT, Kumar et al. 2022, arXiv:2202.10054).

    Where fine-tuning does not do better on val than the probe by more than chance would (where
    classes are balanced: in mean recall), the probe is published: the best of several epochs on few
    photos looks better than it is. As val has then chosen nothing of it, that probe is fitted to
    train and val together.
    """
    run, probe, targets = start_from_probe(run)
    features, run = run.features, dataclasses.replace(run, features=None)
    data, console, classifier = run.data, run.console, run.classifier
    history: tuple[Epoch, ...] = ()
    if run.config.epochs > 0:
        pretrained = copy.deepcopy(classifier.backbone.state_dict())
        result = _fine_tune(run)
        if run.config.adversarial:
            how = f"{run.config.adversarial} fine-tuning, epoch {result.best.epoch}"
            return run, _fitted(result, data, probe.penalty, how)
        chance = _chance_of_gain(result, data, run.config)
        if chance < SIGNIFICANT:
            how = f"fine-tuned, epoch {result.best.epoch}"
            if result.share < 1:
                how += f", {result.share:.0%} of the way from the probe"
            return run, _fitted(result, data, probe.penalty, how)
        console.line(
            f"Fine-tuning gained no more on {len(data.splits['val'])} val photos than chance may "
            f"give (p = {chance:.2f}): the linear probe is kept, fitted to train and val"
        )
        classifier.backbone.load_state_dict(pretrained)
        history = result.history
    _set_head(classifier, probe.head)
    return dataclasses.replace(run, features=features), Fitted(
        how="linear probe",
        temperature=fit_temperature(probe.out_of_fold, targets),
        penalty=probe.penalty,
        history=history,
    )


def start_from_probe(run: Run) -> tuple[Run, Probe, Ints]:
    """The probe on train and val, and the labels of those photos; the run with those of them found
    whose label is probably wrong, and without these where its settings say so, and with features.

    The net is left with the same head fitted to train alone, ready for fine-tuning: the stages that
    are not to learn are frozen.
    """
    features = _features(run)
    probe = _probe(run, features)
    found = run.world.of_leader(lambda: probe.out_of_fold)  # the same to the last digit in all
    data = with_label_errors(run.data, found, drop=run.config.drop_label_errors)
    say_label_errors(data, ("train", "val"), run.console)
    left = set(data.learnt_from)
    stays = [photo in left for photo in run.data.learnt_from]
    run = dataclasses.replace(run, data=data)
    if not all(stays):
        features = features[stays]
        probe = _probe(run, features)
    run = dataclasses.replace(run, features=features[:, 0])
    targets = targets_of(data.learnt_from)
    if run.config.epochs > 0:
        in_train = len(data.splits["train"])
        rows = features[:in_train].reshape(-1, features.shape[-1])
        repeated = np.repeat(targets[:in_train], features.shape[1])
        each = photo_weights(repeated, run.config.balance)
        solve, classes = solver_of(run.config), len(data.labels)
        head = solve(rows, repeated, classes, probe.penalty, weights=each)
        _set_head(run.classifier, head)
        freeze_early_stages(run)
    return run, probe, targets


def _features(run: Run) -> Floats:
    """Of train and val, [n, views, F]."""
    config, console, classifier = run.config, run.console, run.classifier
    photos = run.data.learnt_from
    digest = functools.cache(classifier.backbone_digest)  # no weight changes before the probe
    open_net: Callable[[Classifier], FeatureNet] = in_torch
    device = classifier.head.weight.device.type
    exports = device == "cpu" and (config.epochs == 0 or len(photos) >= EXPORTED_FROM)
    by = "onnx" if exports else device
    cache = cache_of(config, classifier, digest, by, console.line)
    if exports:
        # ONNX Runtime takes half of PyTorch's time on a CPU. Where the backbone stays as it is, its
        # export is due anyway; a net that can't be exported says so before it is trained.
        _prepare_export(run, classifier, digest)
        open_net = run.exporter.features
    with console.bar("Features of the frozen backbone", len(photos)) as advance:
        return extract(
            classifier, photos, run.data.squares, cache, advance, open_net, world=run.world
        )


def _prepare_export(run: Run, classifier: Classifier, digest: Callable[[], str]) -> None:
    """Of `classifier`, on the CPU, whose backbone has that digest; from the cache where it lies
    there. Raises FailedCheck if it can't be exported."""
    cached = graph_cache_of(run.config, classifier, digest, run.console.line)
    run.exporter.prepare(classifier, cached, run.world, weights=digest())


def _probe(run: Run, features: Floats) -> Probe:
    """Solved on `features` of train and val, and said."""
    photos = run.data.learnt_from
    targets = targets_of(photos)
    weights = photo_weights(targets, run.config.balance)
    with run.console.bar("Heads of the linear probe", MOST_FITS) as advance:
        probe = fit_probe(
            features,
            targets,
            len(run.data.labels),
            np.random.default_rng(run.config.seed),
            weights=weights,
            solve=solver_of(run.config),
            units=run.data.units(photos),
            advance=advance,
        )
    right = float(np.mean(probe.out_of_fold.argmax(axis=1) == targets))
    figures = {"accuracy/cross-validated": right, "penalty/probe": probe.penalty}
    said = f"Linear probe: penalty {probe.penalty:g}, cross-validated accuracy {right:.4f}"
    if weights is not None:
        recall = mean_recall(probe.out_of_fold, targets)
        said += f", mean recall {recall:.4f}"
        figures["mean recall/cross-validated"] = recall
    run.console.line(said)
    if run.track is not None:
        run.track(figures, 0)
    return probe


def solver_of(config: TrainConfig) -> Solver:
    """Of the head on frozen features."""
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
    photos = config.epochs * len(run.data.splits["train"])
    with console.bar("Training", photos) as advance:

        def record(epoch: Epoch) -> None:
            if run.track is not None:
                run.track(figures_of(epoch), epoch.epoch)
            if run.recorded is not None:
                run.recorded.epoch(epoch)

        def report(epoch: Epoch) -> None:
            console.line(_in_words(epoch, config.epochs))
            record(epoch)

        result = fine_tune(learner, report, advance, checkpoints=run.checkpoints, recall=record)
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
    if epoch.val_robust_recall is not None:
        withstood += f", mean recall {epoch.val_robust_recall:.4f}"
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
