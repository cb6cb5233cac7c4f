"""Fine-tuning, from top to bottom: the loop, its learning rate, and the epoch that is kept."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trainer.activations import Activations
from trainer.adversarial import Adversary
from trainer.augment import Augmentation
from trainer.backbones import Classifier
from trainer.config import TrainConfig
from trainer.data import PhotoData
from trainer.errors import FailedCheck
from trainer.features import plain
from trainer.metrics import accuracy, nll
from trainer.pictures import Photo
from trainer.stages import split_frozen

Advance = Callable[[int, str], None]  # photos done since the last call, and a note

_BATCH = 64


@dataclass(frozen=True)
class Epoch:
    epoch: int  # 0: before any step
    train_loss: float  # nan before any step
    train_accuracy: float
    val_loss: float  # mean negative log-likelihood, nats
    val_accuracy: float
    val_robust_accuracy: float | None = None  # against the adversary, where there is one

    def better_than(self, other: "Epoch") -> bool:
        """By accuracy on val, then by the loss; with an adversary, by the mean of both accuracies.

        The robust one alone would prefer a net that gives all photos the same label to one that is
        nearly always right.
        """
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        robust = self.val_robust_accuracy
        seen = self.val_accuracy if robust is None else (self.val_accuracy + robust) / 2
        return seen, -self.val_loss


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    history: tuple[Epoch, ...]  # from epoch 0
    best: Epoch
    val_logits: npt.NDArray[np.float64]  # [n, K] at the best epoch
    first_logits: npt.NDArray[np.float64]  # [n, K] at epoch 0


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear from 0 to `peak` over the share `warmup` of `total` steps, then half a cosine to 0.

    Step 0 is the first, and already has a rate above 0.
    """
    rising = warmup * total
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))


def fine_tune(
    classifier: Classifier,
    data: PhotoData,
    augmentation: Augmentation,
    config: TrainConfig,
    report: Callable[[Epoch], None],
    advance: Advance,
    adversary: Adversary | None = None,
) -> FineTuned:
    """Train what of `classifier` is not frozen, and leave it as it was after its best epoch on val.

    Epoch 0, before any step, competes: what comes out is never worse on val than what went in.
    With an `adversary` the net learns from what that makes of the photos, and is measured against
    it too. `report` is told of each epoch. Raises FailedCheck when the loss is no number.
    """
    device = classifier.head.weight.device
    photos, targets = data.splits["train"], data.targets("train")
    if adversary is None:
        prefix, suffix = split_frozen(classifier.backbone, classifier.frozen, config.size)
        model: nn.Module = nn.Sequential(suffix, classifier.head)
        ready: Callable[[torch.Tensor], torch.Tensor] = classifier.normalise
    else:  # it must see the pixels, and the whole net
        prefix, model, ready = nn.Identity(), classifier, nn.Identity()
    train = Activations(prefix, lambda p, view: ready(augmentation.batch(p, view)))
    val = Activations(prefix, lambda p, _: ready(plain(data.squares, p)))
    optimizer = torch.optim.AdamW(parameter_groups(classifier, config.weight_decay))
    generator = np.random.default_rng(config.seed)
    batches = math.ceil(len(photos) / config.batch_size)

    def withstand() -> float | None:
        if adversary is None:
            return None
        photos, labels = data.splits["val"], torch.from_numpy(data.targets("val"))
        return adversary.robust_accuracy(model, val.get(photos, 0).to(device), labels.to(device))

    val_logits = predict(model, val, data.splits["val"])
    best = measure(0, (math.nan, math.nan), val_logits, data, withstand())
    history, best_logits, first_logits = [best], val_logits, val_logits
    kept = copy.deepcopy(classifier.state_dict())
    report(best)
    for epoch in range(1, config.epochs + 1):
        loss_sum, right = 0.0, 0
        order = np.array_split(generator.permutation(len(photos)), batches)
        for i, batch in enumerate(order):
            step = (epoch - 1) * batches + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step, config.epochs * batches, config.learning_rate, config.warmup
                )
            inputs = train.get([photos[j] for j in batch], (epoch - 1) % config.views).to(device)
            labels = torch.from_numpy(targets[batch]).to(device)
            if adversary is not None:
                progress = step / (config.epochs * batches)
                inputs = adversary.attack(model, inputs, labels, progress)
            model.train()
            classifier.train()  # puts what is frozen back into evaluation mode
            logits = model(inputs)
            loss = cross_entropy(logits, labels)
            if not math.isfinite(loss.item()):
                raise FailedCheck(
                    f"the loss is {loss.item()} in epoch {epoch}, step {i + 1} of {batches}; "
                    f"try a lower --learning-rate (it is {config.learning_rate:g})"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item() * len(batch)
            right += int((logits.argmax(dim=1) == labels).sum())
            advance(len(batch), f"epoch {epoch}/{config.epochs} loss {loss.item():.3f}")
        means = (loss_sum / len(photos), right / len(photos))
        val_logits = predict(model, val, data.splits["val"])
        history.append(measure(epoch, means, val_logits, data, withstand()))
        report(history[-1])
        if history[-1].better_than(best):
            best, best_logits = history[-1], val_logits
            kept = copy.deepcopy(classifier.state_dict())
    classifier.load_state_dict(kept)
    classifier.eval()
    return FineTuned(
        history=tuple(history), best=best, val_logits=best_logits, first_logits=first_logits
    )


def measure(
    epoch: int,
    train: tuple[float, float],
    val_logits: npt.NDArray[np.float64],
    data: PhotoData,
    robust: float | None,
) -> Epoch:
    """An epoch's figures; `train`: mean loss and accuracy of its steps."""
    targets = data.targets("val")
    return Epoch(epoch, *train, nll(val_logits, targets), accuracy(val_logits, targets), robust)


def predict(
    model: nn.Module, inputs: Activations, photos: Sequence[Photo]
) -> npt.NDArray[np.float64]:
    """Logits [n, K] of the plain view, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(photos), _BATCH):
        batch = inputs.get(photos[start : start + _BATCH], 0)
        with torch.inference_mode():
            rows.append(model(batch.to(device)).double().cpu().numpy())
    return np.concatenate(rows)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels decay; biases and the scales of normalisation layers do not (He et al. 2019, 3.1)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
