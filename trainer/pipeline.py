"""One training run, from top to bottom: photos in, a published version out."""

import copy
import time
from pathlib import Path

import numpy as np
import torch

from serving.modelspec import Preprocessing
from serving.repository import Repository
from trainer.adversarial import Adversary
from trainer.augment import Augmentation
from trainer.backbones import Calibrated, Classifier, build
from trainer.calibration import fit_temperature
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData, load_data
from trainer.defence import parse_defence
from trainer.errors import FailedCheck
from trainer.feature_cache import FeatureCache
from trainer.features import VIEWS, extract
from trainer.metrics import chance_of_gain
from trainer.pictures import for_augmentation
from trainer.probe import Head, fit_head, fit_probe
from trainer.publish import Fitted, Published, publish
from trainer.stages import frozen_stages
from trainer.training import Epoch, FineTuned, fine_tune
from trainer.tree import find_files, labels_of
from trainer.weights import digest_state

SIGNIFICANT = 0.05  # chance below which a gain on val is believed


def train(config: TrainConfig, console: Console) -> Published:
    """Train, export, check, measure and publish one version.

    Raises PawprintError (InvalidRequest, InvalidData, FailedCheck); then nothing is published.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    repository = Repository(Path(config.out))
    with repository.staging(config.name):
        pass  # fails now, rather than after the training, where nothing can be written
    files = find_files(Path(config.data))
    classifier = build(config.backbone, len(labels_of(files)), config.size, config.weights)
    classifier.to(device).to(memory_format=torch.channels_last)
    spec = Preprocessing(size=config.size, interpolation=config.interpolation)
    data = load_data(config, files, spec, console.track)
    _say_what_was_found(data, console)
    if config.weights == "none":
        fitted = _from_scratch(classifier, data, config, console)
    else:
        fitted = _probe_then_fine_tune(classifier, data, config, console)
    classifier.to("cpu").to(memory_format=torch.contiguous_format)
    calibrated = Calibrated(classifier, fitted.temperature).eval()
    return publish(repository, calibrated, data, spec, config, fitted, started, console)


def _from_scratch(
    classifier: Classifier, data: PhotoData, config: TrainConfig, console: Console
) -> Fitted:
    result = _fine_tune(classifier, data, config, console)
    return _fitted(result, data, None, f"from scratch, epoch {result.best.epoch}")


def _probe_then_fine_tune(
    classifier: Classifier, data: PhotoData, config: TrainConfig, console: Console
) -> Fitted:
    """A linear probe, then fine-tuning from it (LP-FT, Kumar et al. 2022, arXiv:2202.10054).

    Where fine-tuning does not do better on val than the probe by more than chance would, the probe
    is published: the best of several epochs on few photos looks better than it is. As val has then
    chosen nothing of it, that probe is fitted to train and val together.
    """
    photos = data.splits["train"] + data.splits["val"]
    targets = np.concatenate([data.targets("train"), data.targets("val")])
    key = {
        "backbone": config.backbone,
        "weights": digest_state(classifier.backbone.state_dict()),
        "size": config.size,
        "interpolation": config.interpolation,
        "views": VIEWS,
    }
    cache = FeatureCache(None if config.cache is None else Path(config.cache), key)
    with console.bar("Features of the frozen backbone", len(photos)) as advance:
        features = extract(classifier, photos, data.squares, cache, advance)
    classes = len(data.labels)
    probe = fit_probe(features, targets, classes, np.random.default_rng(config.seed))
    right = float(np.mean(probe.out_of_fold.argmax(axis=1) == targets))
    console.line(f"Linear probe: penalty {probe.penalty:g}, cross-validated accuracy {right:.4f}")
    history: tuple[Epoch, ...] = ()
    if config.epochs > 0:
        in_train = len(data.splits["train"])
        rows = features[:in_train].reshape(-1, features.shape[-1])
        repeated = np.repeat(targets[:in_train], features.shape[1])
        _set_head(classifier, fit_head(rows, repeated, classes, probe.penalty))
        classifier.freeze(frozen_stages(classifier.backbone, config.thaw))
        pretrained = copy.deepcopy(classifier.backbone.state_dict())
        result = _fine_tune(classifier, data, config, console)
        if config.adversarial:
            how = f"{config.adversarial} fine-tuning, epoch {result.best.epoch}"
            return _fitted(result, data, probe.penalty, how)
        chance = chance_of_gain(result.first_logits, result.val_logits, data.targets("val"))
        if chance < SIGNIFICANT:
            return _fitted(result, data, probe.penalty, f"fine-tuned, epoch {result.best.epoch}")
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


def _fine_tune(
    classifier: Classifier, data: PhotoData, config: TrainConfig, console: Console
) -> FineTuned:
    def report(epoch: Epoch) -> None:
        seen = "" if epoch.epoch == 0 else f"train loss {epoch.train_loss:.4f}  "
        robust = epoch.val_robust_accuracy
        withstood = "" if robust is None else f"  under attack {robust:.4f}"
        console.line(
            f"Epoch {epoch.epoch}/{config.epochs}: {seen}val loss {epoch.val_loss:.4f}  "
            f"val accuracy {epoch.val_accuracy:.4f}{withstood}"
        )

    pictures = for_augmentation(config.size, workers=config.workers)
    augmentation = Augmentation(pictures, config.size, config.seed)
    adversary = None
    if config.adversarial:
        adversary = Adversary(parse_defence(config.adversarial), config.seed)
    with console.bar("Training", config.epochs * len(data.splits["train"])) as advance:
        result = fine_tune(classifier, data, augmentation, config, report, advance, adversary)
    if adversary is not None and result.best.epoch == 0:
        raise FailedCheck(
            f"training against {config.adversarial} made the net no better on val in "
            f"{config.epochs} epochs; try more --epochs, another --learning-rate or a smaller "
            "epsilon"
        )
    return result


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


def _say_what_was_found(data: PhotoData, console: Console) -> None:
    counts = ", ".join(f"{len(photos)} {split}" for split, photos in data.splits.items())
    console.line(f"Found {len(data.labels)} classes; photos: {counts}")
    if data.left_out:
        console.line(f"Left out {len(data.left_out)} files:")
        for item in data.left_out:
            console.line(f"  {item.file}: {item.reason}")
