"""A net in training: its inputs, its optimiser and loss. What it sees when is the loop's affair."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer.activations import Activations
from trainer.adversarial import Adversary
from trainer.augment import Augmentation
from trainer.backbones import Classifier
from trainer.balance import class_weights
from trainer.config import TrainConfig
from trainer.data import PhotoData, targets_of
from trainer.distributed import ALONE, World
from trainer.features import plain
from trainer.losses import make_distillation, make_loss
from trainer.memory import halved
from trainer.metrics import Bools
from trainer.mixing import make_mix
from trainer.optimizers import OPTIMIZERS, parameter_groups, set_rate
from trainer.pictures import Photo
from trainer.running_statistics import keep_up
from trainer.split import Ints
from trainer.stages import channels_last, split_frozen
from trainer.step import Step
from trainer.teacher import Teacher

_BATCH = 64
_ATTACKED_AT_ONCE = 32


class Learner:
    """Takes steps with what of `classifier` is not frozen, and says how it does on val."""

    def __init__(
        self,
        classifier: Classifier,
        data: PhotoData,
        augmentation: Augmentation,
        config: TrainConfig,
        *,
        adversary: Adversary | None = None,
        teacher: Teacher | None = None,
        world: World = ALONE,
    ) -> None:
        """With an `adversary` the net learns from what that makes of the photos, and is measured
        against it too; with a `teacher`, from what that says of them.
        """
        self.classifier, self.data, self.config = classifier, data, config
        self.adversary, self.world = adversary, world
        self._device = device = classifier.head.weight.device
        self._photos, self._targets = data.splits["train"], data.targets("train")
        self._classes = len(data.labels)
        if adversary is None:
            prefix, suffix = split_frozen(classifier.backbone, classifier.frozen, config.size)
            self._model: nn.Module = nn.Sequential(suffix, *classifier.top())
            ready: Callable[[torch.Tensor], torch.Tensor] = classifier.normalise
        else:  # it must see the pixels, and the whole net
            prefix, self._model, ready = nn.Identity(), classifier, nn.Identity()
        self._views = None if isinstance(prefix, nn.Identity) else config.views
        self._train = Activations(
            prefix, lambda p, views: ready(augmentation.batch(p, views).to(device))
        )
        self._val = Activations(
            prefix, lambda p, views: ready(_turned(plain(data.squares, p), views).to(device))
        )
        # The whole net sees both ways by itself.
        self._ways = 2 if classifier.mirror and adversary is None else 1
        self._taught = None if teacher is None else teacher.on(augmentation, device)

        keep_up(classifier)
        if config.dropout is not None:
            classifier.dropout.p = config.dropout
        groups = parameter_groups(classifier, config.weight_decay, config.layer_decay)
        self.optimizer = OPTIMIZERS[config.optimizer](groups)
        weights = loss_weights(self._targets, self._classes, config.balance, device)
        loss = make_loss(weights, config.label_smoothing)
        if teacher is not None:
            loss = make_distillation(
                loss, weights, config.teacher_share, config.teacher_temperature
            )
        last = config.cutmix > 0 and channels_last(prefix, config.size)
        self._mix = make_mix(config.mixup, config.cutmix, self._classes, channels_last=last)
        self.step = Step(
            self._model,
            self.optimizer,
            device=device,
            amp=config.amp,
            parts=config.accumulate,
            clip=config.clip,
            loss=loss,
            compile=config.compile,
            world=world,
        )

    def freeze(self, modules: Sequence[nn.Module]) -> None:
        """These stages of the classifier, from now on, and no others."""
        self.classifier.freeze(modules)
        self.step.follow()

    def learn(
        self,
        batch: Sequence[int],
        *,
        repeats: Sequence[int] | None = None,
        view: int,
        rate: float,
        step: int,
        progress: float,
    ) -> tuple[float, int]:
        """One step on these train photos; the sum of their losses, and how many it had right.

        repeats: how often each came before in this epoch, None: never; view: which augmented one of
        each photo, from 0 on, one that comes again has another (behind frozen stages that are run
        ahead, and only there, they come again after as many as the settings say); rate: the head's;
        step: counts from the start of the training, for what is drawn; progress: share of the
        training that is done. Where the loss is no number, no weight has changed, but batch norm's
        running statistics have.
        """
        set_rate(self.optimizer, rate)
        again = [0] * len(batch) if repeats is None else repeats
        mine, views = self.step.share(batch), self._views_of(view, self.step.share(again))
        photos = [self._photos[j] for j in mine]
        inputs = self._train.get(photos, views).to(self._device)
        labels = torch.from_numpy(self._targets[mine]).to(self._device)
        taught = None if self._taught is None else self._taught.get(photos, views).to(self._device)
        if self.adversary is not None:
            parts = min(self.step.parts, len(inputs))
            inputs = self.adversary.attack(self._model, inputs, labels, progress, parts)
        draw = np.random.default_rng([self.config.seed, step, self.world.rank])
        mixed, goals = self._mix(inputs, labels, draw)
        self._model.train()
        self.classifier.train()  # puts what is frozen back into evaluation mode
        return self.step(mixed, goals, labels, taught, len(batch))

    def _views_of(self, view: int, repeats: Sequence[int]) -> list[int]:
        if self._views is None:
            return [view + self.config.epochs * again for again in repeats]
        return [(view + again) % self._views for again in repeats]

    def evaluate(self) -> npt.NDArray[np.float64]:
        """Logits [n, K] of the val photos."""
        mine = self.world.share(self.data.splits["val"])
        logits = [
            predict(self._model, self._val, mine, self._classes, view=view)
            for view in range(self._ways)
        ]  # the head is linear: their mean is what it makes of the mean of both features
        return self.world.join(np.mean(logits, axis=0))

    def withstand(self) -> Bools | None:
        """Which of the val photos stand against the adversary, [n], where there is one."""
        if (adversary := self.adversary) is None:
            return None

        def standing(photos: Sequence[Photo]) -> torch.Tensor:
            images = self._val.get(photos, [0] * len(photos)).to(self._device)
            labels = torch.from_numpy(targets_of(photos)).to(self._device)
            return adversary.withstanding(self._model, images, labels).cpu()

        mine = self.world.share(self.data.splits["val"])
        stand = [np.empty(0, np.bool_)]
        for start in range(0, len(mine), _ATTACKED_AT_ONCE):
            stand.append(halved(standing, mine[start : start + _ATTACKED_AT_ONCE]).numpy())
        return self.world.join(np.concatenate(stand))


def _turned(images: torch.Tensor, views: Sequence[int]) -> torch.Tensor:
    """[n, 3, S, S]: view 0 of each as it is, view 1 mirrored."""
    mirrored = torch.tensor(views, dtype=torch.bool)
    images[mirrored] = images[mirrored].flip(3)
    return images


def loss_weights(
    targets: Ints, classes: int, balance: str, device: torch.device
) -> torch.Tensor | None:
    """float32 [K], or None for equal ones."""
    if balance != "weights":
        return None
    return torch.from_numpy(class_weights(targets, classes)).float().to(device)


def predict(
    model: nn.Module, inputs: Activations, photos: Sequence[Photo], classes: int, *, view: int = 0
) -> npt.NDArray[np.float64]:
    """Logits [n, K] of one view, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    rows = [np.empty((0, classes))]
    for start in range(0, len(photos), _BATCH):
        some = photos[start : start + _BATCH]
        batch = inputs.get(some, [view] * len(some))
        with torch.inference_mode():
            logits = halved(lambda some: model(some.to(device)).double().cpu(), batch)
        rows.append(logits.numpy())
    return np.concatenate(rows)
