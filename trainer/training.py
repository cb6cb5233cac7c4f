"""Fine-tuning, from top to bottom: the loop, its learning rate, and the epoch that is kept."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch

from trainer.adversarial import Adversary
from trainer.averaging import MovingAverage, State, best_between
from trainer.backbones import Classifier, version_state
from trainer.balance import batches_of, make_order
from trainer.batches import batch_count
from trainer.checkpoint import Checkpoint, Checkpoints
from trainer.config import TrainConfig
from trainer.console import Advance
from trainer.data import PhotoData
from trainer.errors import FailedCheck
from trainer.learner import Learner
from trainer.metrics import Bools, accuracy, mean_over_classes, mean_recall, nll
from trainer.schedules import SCHEDULES
from trainer.stages import make_thawing


@dataclass(frozen=True)
class Epoch:
    epoch: int  # 0: before any step
    train_loss: float  # nan before any step
    train_accuracy: float
    val_loss: float  # mean negative log-likelihood, nats
    val_accuracy: float
    val_robust_accuracy: float | None = None  # against the adversary, where there is one
    val_mean_recall: float | None = None  # where classes are balanced
    val_robust_recall: float | None = None  # where both

    @property
    def judged(self) -> float:
        """The share of val that is right, by which epochs are chosen: where classes are balanced,
        every class counts alike.
        """
        return self.val_accuracy if self.val_mean_recall is None else self.val_mean_recall

    def better_than(self, other: "Epoch") -> bool:
        """By accuracy on val, then by the loss; with an adversary, by the mean of both accuracies.

        An epoch whose loss is no number is better than none.

        The robust one alone would prefer a net that gives all photos the same label to one that is
        nearly always right; and so would the mean where classes are uneven, did they not count
        alike in both.
        """
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        if not math.isfinite(self.val_loss):
            return -math.inf, -math.inf
        robust = self.val_robust_accuracy
        if self.val_robust_recall is not None:
            robust = self.val_robust_recall
        return self.judged if robust is None else (self.judged + robust) / 2, -self.val_loss


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    history: tuple[Epoch, ...]  # from epoch 0
    best: Epoch
    val_logits: npt.NDArray[np.float64]  # [n, K] at the best epoch
    first_logits: npt.NDArray[np.float64]  # [n, K] at epoch 0
    share: float  # of what was learnt, the rest is what went in: below 1 only with wise_ft


def fine_tune(
    learner: Learner,
    report: Callable[[Epoch], None],
    advance: Advance,
    *,
    checkpoints: Checkpoints | None = None,
    recall: Callable[[Epoch], None] | None = None,
) -> FineTuned:
    """Train what of the net is not frozen, and leave it as it was after its best epoch on val.

    Epoch 0, before any step, competes: what comes out is never worse on val than what went in. With
    wise_ft it is one end of a line, whose other end is the best epoch after it.
    With `checkpoints` it goes on from the last one, and ends as if it had never stopped. `report`
    is told of each epoch, `recall` of each that the checkpoint has. Raises FailedCheck when the
    loss is no number.
    """
    classifier, data, config = learner.classifier, learner.data, learner.config
    adversary, world = learner.adversary, learner.world
    photos, targets = data.splits["train"], data.targets("train")
    frozen = classifier.frozen
    rate_at = SCHEDULES[config.schedule]
    next_order = make_order(targets, config.balance)
    balanced = config.balance != "none"
    frozen_in = make_thawing(classifier.backbone, frozen, gradual=config.gradual)
    average = MovingAverage(classifier, config.ema)
    batches = batch_count(len(photos), config.batch_size, world.size)

    first = copy.deepcopy(classifier.state_dict())
    # The leader's alone: the others may be on machines that have no file, or an older one.
    last = world.of_leader(checkpoints.load) if checkpoints else None
    if last is None:
        first_logits = best_logits = learner.evaluate()
        none = (math.nan, math.nan)
        history = [measure(0, none, first_logits, data, learner.withstand(), balanced)]
        kept = first
        report(history[0])
    else:
        classifier.load_state_dict(last.model)
        learner.optimizer.load_state_dict(last.optimizer)
        learner.step.scaler.load_state_dict(last.scaler)
        average.resume(last.average, last.average_steps)
        learner.step.parts = last.parts
        first_logits, best_logits = (last.logits[name].numpy() for name in ("first", "best"))
        history = [Epoch(*row) for row in last.history]  # type: ignore[arg-type]
        if recall is not None:
            for past in history:
                recall(past)
        kept = {name: value.to(first[name].device) for name, value in last.best.items()}
        advance(last.epoch * len(photos), f"resumed after epoch {last.epoch}")
    best = best_of(history, learnt=config.wise_ft)

    def fail(loss: float, where: str) -> NoReturn:
        classifier.load_state_dict(kept)
        said = partial(no_number, loss, where, config, checkpoints, classifier)
        raise FailedCheck(world.of_leader(said))

    for epoch in range(len(history), config.epochs + 1):
        # What thaws later may still gain: epochs before all stages have are no wait.
        waited = sum(len(frozen_in(past)) == len(frozen) for past in range(best.epoch + 1, epoch))
        if config.patience and waited >= config.patience:
            break
        learner.freeze(frozen_in(epoch))
        seed_epoch(config.seed, epoch, world.rank, adversary)
        loss_sum, right = 0.0, 0
        for i, (batch, repeats) in enumerate(batches_of(next_order, batches, config.seed, epoch)):
            done = (epoch - 1) * batches + i
            total = config.epochs * batches
            loss, hits = learner.learn(
                batch,
                repeats=repeats,
                view=epoch - 1,
                rate=rate_at(done, total, config.learning_rate, config.warmup),
                step=done,
                progress=done / total,
            )
            if not math.isfinite(loss):
                first_files = ", ".join(photos[j].file for j in batch[:3])
                fail(loss, f"in epoch {epoch}, step {i + 1} of {batches} (with {first_files})")
            average.update()
            loss_sum, right = loss_sum + loss, right + hits
            more = learner.step.parts > config.accumulate
            parts = f", batches in {learner.step.parts} parts" if more else ""
            advance(
                len(batch), f"epoch {epoch}/{config.epochs} loss {loss / len(batch):.3f}{parts}"
            )
        with average.applied():
            val_logits = learner.evaluate()
            means = (loss_sum / len(photos), right / len(photos))
            stand = learner.withstand()
            history.append(measure(epoch, means, val_logits, data, stand, balanced))
            report(history[-1])
            if best_of((best, history[-1]), learnt=config.wise_ft) is not best:
                best, best_logits = history[-1], val_logits
                kept = copy.deepcopy(classifier.state_dict())
        if checkpoints and world.leads:
            checkpoints.save(
                Checkpoint(
                    epoch=epoch,
                    model=classifier.state_dict(),
                    optimizer=learner.optimizer.state_dict(),
                    scaler=learner.step.scaler.state_dict(),
                    best=kept,
                    average=average.state,
                    average_steps=average.steps,
                    parts=learner.step.parts,
                    logits={
                        "first": torch.from_numpy(first_logits),
                        "best": torch.from_numpy(best_logits),
                    },
                    history=[list(dataclasses.astuple(each)) for each in history],
                )
            )

    if not math.isfinite(history[-1].val_loss):  # what the last step did, no other has seen
        fail(history[-1].val_loss, f"on val after epoch {history[-1].epoch}")

    share = 1.0
    if config.wise_ft:

        def cost(state: State) -> tuple[float, float]:
            classifier.load_state_dict(state)
            logits, labels = learner.evaluate(), data.targets("val")
            share_right = mean_recall if balanced else accuracy
            return -share_right(logits, labels), nll(logits, labels)

        share, kept = best_between(first, kept, cost)
    classifier.load_state_dict(kept)
    classifier.eval()
    if config.wise_ft:
        best_logits = learner.evaluate()
    world.unwrap(classifier)
    return FineTuned(
        history=tuple(history),
        best=best,
        val_logits=best_logits,
        first_logits=first_logits,
        share=share,
    )


def best_of(history: Sequence[Epoch], *, learnt: bool = False) -> Epoch:
    """With `learnt`, epoch 0 does not compete with any other whose loss is a number."""
    best = history[0]
    for epoch in history[1:]:
        after = learnt and best.epoch == 0 and math.isfinite(epoch.val_loss)
        if after or epoch.better_than(best):
            best = epoch
    return best


def seed_epoch(seed: int, epoch: int, rank: int, adversary: Adversary | None) -> None:
    """What an epoch draws is a function of the run's seed, the epoch and the process alone."""
    (drawn,) = np.random.SeedSequence([seed, epoch, rank]).generate_state(1).tolist()
    torch.manual_seed(drawn)
    if adversary is not None:
        adversary.generator.manual_seed(drawn)


def no_number(
    loss: float,
    where: str,
    config: TrainConfig,
    checkpoints: Checkpoints | None,
    best: Classifier,
) -> str:
    """Where the loss stopped being a number, what to try, and where the best weights are kept."""
    clip = "" if config.clip else ", or --clip 1"
    said = (
        f"the loss is {loss} {where}; try a lower --learning-rate (it is "
        f"{config.learning_rate:g}){clip}"
    )
    if checkpoints is None:
        return said
    try:
        path = checkpoints.save_weights(version_state(best))
    except OSError as error:
        return f"{said}. The best weights so far can't be written ({error.strerror})"
    return f"{said}. The best weights so far are in {path}; --weights takes them"


def measure(
    epoch: int,
    train: tuple[float, float],
    val_logits: npt.NDArray[np.float64],
    data: PhotoData,
    stand: Bools | None,
    balanced: bool,
) -> Epoch:
    """An epoch's figures; `train`: mean loss and accuracy of its steps; `stand`: which of val's
    photos do, against an adversary."""
    targets = data.targets("val")
    loss, right = nll(val_logits, targets), accuracy(val_logits, targets)
    recall = mean_recall(val_logits, targets) if balanced else None
    robust = robust_recall = None
    if stand is not None:
        robust = float(np.mean(stand))
        robust_recall = mean_over_classes(stand, targets) if balanced else None
    return Epoch(epoch, *train, loss, right, robust, recall, robust_recall)
