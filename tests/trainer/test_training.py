"""The loop: its learning rate, what it keeps, what stops it."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm2d, Conv2d, Dropout

from serving.modelspec import Preprocessing
from tests.trainer.conftest import MakePhotos
from trainer.activations import Activations
from trainer.adversarial import Adversary
from trainer.augment import Augmentation
from trainer.backbones import Classifier, build
from trainer.balance import repeats_of
from trainer.checkpoint import Checkpoints
from trainer.config import TrainConfig
from trainer.console import unshown
from trainer.data import PhotoData, load_data
from trainer.defence import parse_defence
from trainer.distributed import ALONE
from trainer.errors import FailedCheck
from trainer.features import plain
from trainer.learner import Learner
from trainer.metrics import accuracy, nll
from trainer.optimizers import parameter_groups
from trainer.pictures import Photo, for_augmentation
from trainer.publish import training_json
from trainer.results import Fitted
from trainer.schedules import cosine
from trainer.stages import frozen_stages
from trainer.teacher import Teacher
from trainer.training import Epoch, FineTuned, best_of, fine_tune
from trainer.tree import find_files


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [cosine(step, 100, 0.1, 0.1) for step in range(100)]
    assert rates[:11] == pytest.approx([0.1 * step / 11 for step in range(1, 11)] + [0.1])
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.05) and 0 < rates[99] < 1e-4
    assert max(rates) == pytest.approx(0.1)


def test_without_warm_up_it_starts_at_its_peak():
    assert cosine(0, 10, 0.3, 0.0) == 0.3


def test_an_epoch_is_better_by_accuracy_and_then_by_loss():
    first = Epoch(1, 0.1, 1.0, val_loss=0.5, val_accuracy=0.9)
    assert Epoch(2, 0.1, 1.0, val_loss=0.9, val_accuracy=0.95).better_than(first)
    assert Epoch(2, 0.1, 1.0, val_loss=0.4, val_accuracy=0.9).better_than(first)
    assert not Epoch(2, 0.1, 1.0, val_loss=0.5, val_accuracy=0.9).better_than(first)
    assert not Epoch(2, 0.1, 1.0, val_loss=0.1, val_accuracy=0.8).better_than(first)
    broken = Epoch(2, 0.1, 1.0, val_loss=math.nan, val_accuracy=0.95)
    assert not broken.better_than(first) and first.better_than(broken)


def test_where_classes_are_balanced_an_epoch_is_better_by_mean_recall():
    first = Epoch(1, 0.1, 1.0, val_loss=0.5, val_accuracy=0.9, val_mean_recall=0.5)
    assert Epoch(2, 0.1, 1.0, 0.6, 0.8, val_mean_recall=0.8).better_than(first)
    assert not Epoch(2, 0.1, 1.0, 0.4, 0.95, val_mean_recall=0.4).better_than(first)


def test_where_what_was_learnt_is_wanted_the_best_epoch_after_the_first_is_taken():
    first, better, worse = (Epoch(n, 0.1, 1.0, 0.5, right) for n, right in enumerate((1, 0.9, 0.8)))
    broken = Epoch(1, 0.1, 1.0, val_loss=math.nan, val_accuracy=0.9)
    assert best_of((first, better, worse), learnt=True) is better
    assert best_of((first, broken, worse), learnt=True) is worse
    assert best_of((first, broken), learnt=True) is best_of((first, better)) is first


def test_only_kernels_decay():
    net = build("resnet18", 3, 64)
    net.freeze(frozen_stages(net.backbone, 0.25))
    free, decayed = sorted(parameter_groups(net, 0.3), key=lambda group: group["weight_decay"])
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2, 4} and {p.dim() for p in free["params"]} == {
        1
    }
    assert all(p.requires_grad for group in (decayed, free) for p in group["params"])


@pytest.mark.parametrize(
    ("backbone", "size", "free"),
    [
        ("swin_t", 64, {"relative_position_bias_table"}),
        ("convnext_tiny", 64, {"layer_scale"}),
        ("timm/test_vit", 160, {"cls_token", "pos_embed"}),
    ],
)
def test_of_parameters_with_dimensions_only_kernels_decay(backbone: str, size: int, free: set):
    net = build(backbone, 3, size)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found: dict[float, set[str]] = {0.0: set(), 0.3: set()}
    for group in parameter_groups(net, 0.3):
        many = [p for p in group["params"] if p.dim() > 1]
        found[group["weight_decay"]] |= {names[id(p)].rpartition(".")[2] for p in many}
    assert found[0.0] == free
    assert found[0.3] <= {"weight", "in_proj_weight"} and "weight" in found[0.3]


class Run:
    """A quick training of resnet18's last stages, or of the whole of tiny, on drawn photos."""

    def __init__(
        self, make: MakePhotos, backbone: str, *, per_class: int = 10, **settings: object
    ) -> None:
        folder = make(per_class=per_class)
        self.config = TrainConfig(data=str(folder), name="x", size=48, **settings)
        spec = Preprocessing(size=48, interpolation="bilinear")
        files = find_files(folder)
        self.data: PhotoData = load_data(self.config, files, spec, unshown)
        torch.manual_seed(0)
        self.classifier: Classifier = build(backbone, 2, 48)
        self.classifier.freeze(frozen_stages(self.classifier.backbone, self.config.thaw))
        self.checkpoints: Checkpoints | None = None
        self.teacher: Teacher | None = None
        self.world = ALONE
        self.reported: list[Epoch] = []
        self.done = 0

    def learner(self) -> Learner:
        augmentation = Augmentation(for_augmentation(48, workers=1), 48, self.config.seed)
        adversary = None
        if self.config.adversarial:
            adversary = Adversary(parse_defence(self.config.adversarial), self.config.seed)
        return Learner(
            self.classifier, self.data, augmentation, self.config,
            adversary=adversary, teacher=self.teacher, world=self.world,
        )  # fmt: skip

    def __call__(self) -> FineTuned:
        def advance(count: int, note: str) -> None:
            self.done += count

        report = self.reported.append
        return fine_tune(self.learner(), report, advance, checkpoints=self.checkpoints)

    def val_images(self) -> torch.Tensor:
        return plain(self.data.squares, self.data.splits["val"])

    def val_logits(self) -> np.ndarray:
        with torch.no_grad():
            return self.classifier(self.val_images()).double().numpy()


@pytest.mark.parametrize(("backbone", "own"), [("tiny", 0.2), ("squeezenet1_1", 0.5)])
def test_dropout_is_the_nets_own_unless_it_is_given(photos: MakePhotos, backbone: str, own: float):
    for given, share in (
        *(({}, own), ({"dropout": 0.0}, 0.0), ({"dropout": 0.6}, 0.6)),
        ({"thaw": 0.0}, own),  # nothing but the head learns
    ):
        run = Run(photos, backbone, per_class=4, **given)
        model = run.learner()._model.train()
        run.classifier.train()  # as before each step
        assert run.classifier.dropout.p == share and run.classifier.dropout.training
        drops = {id(module): module.p for module in model.modules() if isinstance(module, Dropout)}
        assert list(drops.values()) == [share], "once, and in what is trained"


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "mnasnet0_5"])
def test_after_some_tens_of_steps_a_net_is_judged_by_what_it_saw(photos: MakePhotos, backbone: str):
    """Made for long trainings, by itself it would still be judged by what it began with."""
    run = Run(photos, backbone, weights="none", thaw=1.0, augment="crop")
    learner = run.learner()
    for step in range(40):
        learner.learn(range(8), view=step, rate=1e-8, step=step, progress=0.0)
    photos_seen = plain(run.data.squares, run.data.splits["train"][:8])
    net = run.classifier.eval()
    kernel, norm = [m for m in net.modules() if isinstance(m, Conv2d | BatchNorm2d)][:2]
    assert isinstance(norm, BatchNorm2d) and norm.running_mean is not None
    with torch.no_grad():
        means = kernel(net.normalise(photos_seen)).mean((0, 2, 3))
    assert (norm.running_mean - means).norm() < 0.35 * means.norm()  # of crops, and whole


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_the_best_epoch_is_what_is_left(photos: MakePhotos, backbone: str):
    run = Run(photos, backbone, epochs=3, batch_size=8, learning_rate=3e-3)
    result = run()
    assert list(result.history) == run.reported
    assert [epoch.epoch for epoch in result.history] == [0, 1, 2, 3]
    assert run.done == 3 * len(run.data.splits["train"])
    best = max(result.history, key=lambda e: (e.val_accuracy, -e.val_loss))
    assert result.best == best
    assert not run.classifier.training
    assert run.val_logits() == pytest.approx(result.val_logits, rel=1e-3, abs=1e-4)


def test_an_epoch_tells_the_means_over_its_photos(photos: MakePhotos):
    run = Run(photos, "tiny", epochs=2, batch_size=10)
    learner = run.learner()
    learn, steps = learner.learn, []

    def noted(batch: Sequence[int], **given: Any) -> tuple[float, int]:
        loss, right = learn(batch, **given)
        steps.append((loss, right, len(batch)))
        return loss, right

    learner.learn = noted
    history = fine_tune(learner, run.reported.append, lambda *_: None).history
    assert len(steps) == 4
    for epoch, of_epoch in zip(history[1:], (steps[:2], steps[2:]), strict=True):
        loss, right, count = map(sum, zip(*of_epoch, strict=True))
        assert (epoch.train_loss, epoch.train_accuracy) == (loss / count, right / count)
        assert epoch.train_loss > 0


def solve_head(run: Run, sharpness: float) -> None:
    """A head that is right on all of val, and the surer the higher `sharpness`."""
    with torch.no_grad():
        features = run.classifier.features(run.val_images())
        centred = features - features.mean(dim=0)
        targets = torch.from_numpy(run.data.targets("val")).float() * 2 - 1
        direction = torch.linalg.lstsq(centred, targets[:, None]).solution[:, 0] * sharpness
        run.classifier.head.weight.copy_(torch.stack([-direction, direction]))
        shift = features.mean(dim=0) @ direction
        run.classifier.head.bias.copy_(torch.stack([shift, -shift]))


def test_harmful_epochs_are_undone_whole(photos: MakePhotos):
    """A rate that ruins the net: epoch 0 is kept, running statistics included."""
    run = Run(photos, "resnet18", epochs=1, learning_rate=3.0)
    solve_head(run, 30)  # so that nothing can be better than epoch 0
    before = {k: v.clone() for k, v in run.classifier.state_dict().items()}
    result = run()
    assert result.history[0].val_accuracy == 1.0 and result.best.epoch == 0
    after = run.classifier.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_wise_ft_looks_on_the_line_to_what_was_learnt_where_no_epoch_is_better(photos: MakePhotos):
    """Epoch 0 is right on all of val, if not sure; the only epoch after it goes too far."""
    run = Run(photos, "resnet18", epochs=1, learning_rate=1e-3, wise_ft=True, batch_size=4)
    solve_head(run, 0.3)
    result = run()
    probe, learnt = result.history
    assert probe.val_accuracy == 1.0 and not learnt.better_than(probe)
    assert result.best is learnt and 0 < result.share < 1
    targets = run.data.targets("val")
    assert accuracy(result.val_logits, targets) == 1.0
    assert nll(result.val_logits, targets) < probe.val_loss
    assert run.val_logits() == pytest.approx(result.val_logits, rel=1e-3, abs=1e-3)


def test_the_same_seed_gives_the_same_weights(photos: MakePhotos):
    weights = []
    for seed in (0, 0, 1):
        run = Run(photos, "tiny", epochs=1, batch_size=8, seed=seed)
        run()
        weights.append(run.classifier.head.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_loss_that_is_no_number_stops_it(photos: MakePhotos):
    run = Run(photos, "tiny", epochs=1, batch_size=8)
    with torch.no_grad():
        run.classifier.head.bias.fill_(math.nan)
    expected = r"loss is nan in epoch 1, step 1 of 2 \(with .*jpg\); try a lower"
    with pytest.raises(FailedCheck, match=expected):
        run()


@pytest.mark.parametrize("patience", [0, 1])
def test_a_last_step_that_ruins_the_net_stops_it_too(photos: MakePhotos, patience: int):
    """No other step sees what it did, only val."""
    settings = {"thaw": 1.0, "warmup": 0.0, "optimizer": "adam", "patience": patience}
    run = Run(photos, "squeezenet1_1", epochs=1 + patience, learning_rate=10.0, **settings)
    with pytest.raises(FailedCheck, match=r"loss is nan on val after epoch 1; try a lower"):
        run()
    assert all(value.isfinite().all() for value in run.classifier.state_dict().values())


def test_an_epoch_whose_loss_is_no_number_leaves_valid_json(photos: MakePhotos):
    """Statistics of batch norm may spoil an epoch on val alone, and the next be well."""
    run = Run(photos, "tiny", epochs=1)
    spoilt = Epoch(1, 3e10, 0.5, math.nan, 0.5)
    first = Epoch(0, math.nan, math.nan, 0.7, 0.5)
    fitted = Fitted(how="x", temperature=1.0, penalty=None, history=(first, spoilt))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = training_json(fitted, 0.1, run.data)
    before, after = json.loads(text, parse_constant=refuse)["history"]
    assert before["val_loss"] == first.val_loss and before["train_loss"] is None
    assert after["val_loss"] is None and after["train_loss"] == 3e10


def test_augmented_photos_are_a_function_of_seed_photo_and_view(photos: MakePhotos):
    run = Run(photos, "tiny")
    members = run.data.splits["train"]
    pictures = for_augmentation(48, workers=2)
    one, other = Augmentation(pictures, 48, 0), Augmentation(pictures, 48, 1)
    first = [0] * len(members)
    images = one.batch(members, first)
    assert images.shape == (len(members), 3, 48, 48) and images.dtype == torch.float32
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    state = torch.get_rng_state()
    assert torch.equal(one.batch(members[::-1], first), images.flip(0))  # whatever the company
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one.batch(members, [1] * len(members)), images)
    assert not torch.equal(other.batch(members, first), images)


def inputs_of(learner: Learner) -> list[torch.Tensor]:
    """What the stages that learn will be given, batch by batch."""
    seen: list[torch.Tensor] = []

    def note(inputs: torch.Tensor, labels: torch.Tensor, draw: np.random.Generator):
        seen.append(inputs)
        return inputs, labels

    learner._mix = note
    return seen


@pytest.mark.parametrize(("thaw", "different"), [(0.5, 3), (1.0, 4)])
def test_a_photo_that_is_drawn_again_is_shown_otherwise(
    photos: MakePhotos, thaw: float, different: int
):
    """As --balance sampling does; behind frozen stages there are no more views than 3."""
    run = Run(photos, "tiny", thaw=thaw, views=3, epochs=2)
    learner = run.learner()
    seen = inputs_of(learner)
    drawn = np.array([1, 0, 1, 1, 1])
    assert repeats_of(drawn).tolist() == [0, 0, 1, 2, 3]
    learner.learn(drawn.tolist(), repeats=repeats_of(drawn), view=0, rate=0.0, step=0, progress=0.0)
    again = seen[0][drawn == 1]
    assert len({image.numpy().tobytes() for image in again}) == different


def test_activations_are_computed_once_while_memory_lasts(photos: MakePhotos):
    run = Run(photos, "tiny")
    members = run.data.splits["train"][:4]
    asked: list[tuple[str, int]] = []

    def images(wanted: list[Photo], views: list[int]) -> torch.Tensor:
        asked.extend((photo.file, view) for photo, view in zip(wanted, views, strict=True))
        return plain(run.data.squares, wanted) + torch.tensor(views)[:, None, None, None]

    conv = torch.nn.Conv2d(3, 2, 3)
    one_size = 2 * 46 * 46 * 4
    kept = Activations(conv, images, memory=3 * one_size)
    with torch.no_grad():
        expected = conv(images(list(members), [1] * 4))
    asked.clear()
    for _ in range(2):
        assert torch.allclose(kept.get(members, [1] * 4), expected, atol=1e-6)
    assert len(asked) == 4 + 1  # three are kept
    kept.get(members[:1], [2])
    assert asked[-1] == (members[0].file, 2)


@pytest.mark.parametrize(("thaw", "expected"), [(0.5, [0, 1, 0, 1]), (1.0, [0, 1, 2, 3])])
def test_views_come_again_only_behind_frozen_stages(
    photos: MakePhotos, thaw: float, expected: list[int]
):
    """By the inputs of the stages that learn, for the same photo in each of four epochs."""
    run = Run(photos, "resnet18", thaw=thaw, views=2)
    learner = run.learner()
    seen = inputs_of(learner)
    for view in range(4):
        learner.learn([0, 1], view=view, rate=0.0, step=view, progress=0.0)
    same = [next(j for j, other in enumerate(seen) if torch.equal(each, other)) for each in seen]
    assert same == expected
