"""Each trick by itself: what it computes, against figures worked by hand."""

import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer

from serving.errors import InvalidRequest
from tests.trainer.conftest import MakePhotos
from tests.trainer.test_training import Run
from trainer.averaging import MovingAverage, best_between, interpolate
from trainer.backbones import Classifier, build
from trainer.balance import class_weights, make_order
from trainer.batches import batch_count, most_parts
from trainer.config import TrainConfig
from trainer.distributed import ALONE
from trainer.errors import FailedCheck
from trainer.heads import initialise_head
from trainer.learner import loss_weights
from trainer.losses import make_loss
from trainer.mixing import cutmix, make_mix, mixup
from trainer.optimizers import OPTIMIZERS, parameter_groups, set_rate
from trainer.schedules import SCHEDULES
from trainer.stages import frozen_stages, make_thawing, stages
from trainer.step import Step
from trainer.train import main


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_rise_to_their_peak_and_never_leave_it_upwards(name: str):
    rates = [SCHEDULES[name](step, 200, 0.1, 0.3) for step in range(200)]
    assert 0 < rates[0] <= 0.1 / 20 and max(rates) == pytest.approx(0.1)
    assert rates[:61] == sorted(rates[:61])
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert rates[-1] == (0.1 if name == "constant" else pytest.approx(0, abs=1e-4))


def test_one_cycle_swings_from_a_25th_of_its_peak():
    rates = [SCHEDULES["one-cycle"](step, 100, 1.0, 0.3) for step in (0, 15, 65)]
    assert rates == pytest.approx([1 / 25, (1 + 1 / 25) / 2, 1 / 2], abs=1e-5)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_go_downhill(name: str):
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = OPTIMIZERS[name]([{"params": [weight], "weight_decay": 0.0, "scale": 1.0}])
    for _ in range(50):
        set_rate(optimizer, 0.02)
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < 4


def test_earlier_stages_learn_more_slowly():
    net = build("resnet18", 3, 64)
    net.freeze(stages(net.backbone)[:4])
    optimizer = OPTIMIZERS["sgd"](parameter_groups(net, 0.1, layer_decay=0.5))
    set_rate(optimizer, 0.8)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for part, expected in (
        (net.head, 0.8),
        (net.backbone.layer4, 0.4),
        (net.backbone.layer3, 0.2),
        (net.backbone.layer2, 0.1),
        (net.backbone.layer1, 0.05),
    ):
        assert [rate[id(p)] for p in part.parameters()] == pytest.approx(
            [expected] * len(list(part.parameters()))
        )
    trained = [p for p in net.parameters() if p.requires_grad]
    assert len(rate) == len(trained) == sum(len(g["params"]) for g in optimizer.param_groups)


def test_stages_thaw_one_an_epoch_from_the_last():
    net = build("tiny", 2, 48)
    net.freeze(stages(net.backbone)[:1])
    frozen_in = make_thawing(net.backbone, net.frozen, gradual=True)
    learning = []
    for epoch in range(1, 5):
        net.freeze(frozen_in(epoch))
        learning.append(
            [any(p.requires_grad for p in s.parameters()) for s in net.backbone.features]
        )
    assert learning[0] == [False, False, False, True]
    assert learning[1] == [False, False, True, True]
    assert learning[2] == learning[3] == [False, True, True, True]
    assert make_thawing(net.backbone, net.frozen, gradual=False)(1) == net.frozen


def test_mixup_is_a_line_between_two_pictures():
    inputs = torch.rand(4, 3, 5, 5)
    other = torch.tensor([1, 2, 3, 0])
    mixed, share = mixup(inputs, other, 0.4, np.random.default_rng(0))
    assert 0 <= share <= 1
    assert torch.allclose(mixed, share * inputs + (1 - share) * inputs[other])


def test_cutmix_keeps_the_share_that_it_says():
    inputs, other = torch.zeros(2, 3, 20, 30), torch.tensor([1, 0])
    inputs[1] = 1
    cut_off = []
    for seed in range(20):
        mixed, share = cutmix(inputs, other, 1.0, np.random.default_rng(seed))
        cut_off.append(share - np.random.default_rng(seed).beta(1.0, 1.0))
        assert float((mixed[0] == 0).float().mean()) == pytest.approx(share, abs=1e-6)
        assert float((mixed[1] == 1).float().mean()) == pytest.approx(share, abs=1e-6)
        assert torch.equal(inputs[0], torch.zeros(3, 20, 30))
    assert min(cut_off) == pytest.approx(0, abs=0.02), (
        "the share drawn, where no edge is in the way"
    )


@pytest.mark.parametrize(
    ("width", "thawed", "shape"),
    [(16, 0.8, (12, 12, 16)), (12, 0.8, (12, 12, 12)), (3, 0.4, (6, 6, 6))],
)
def test_cutmix_cuts_pictures_behind_frozen_stages_of_swin_too(
    photos: MakePhotos, width: int, thawed: float, shape: tuple[int, ...]
):
    """There channels come last, also where they are as many as a side has places."""
    run = Run(photos, "tiny", epochs=1, batch_size=8, cutmix=1.0)
    net = SwinTransformer([4, 4], width, [1, 1], [1, 1], [4, 4], num_classes=2)
    head, net.head = net.head, nn.Identity()
    run.classifier = Classifier(net, nn.Linear(head.in_features, 2), "head")
    run.classifier.freeze(frozen_stages(net, thawed))
    run.classifier.eval()
    learner = run.learner()
    inputs = learner._train.get(run.data.splits["train"][:2], [0, 0])
    assert inputs.shape == (2, *shape)
    other, labels = inputs.flip(0), torch.tensor([0, 1])
    for seed in range(20):
        mixed, goals = learner._mix(inputs, labels, np.random.default_rng(seed))
        theirs = (mixed == other).all(dim=-1)  # a place is of one picture with all its channels
        assert ((mixed == inputs).all(dim=-1) | theirs).all()
        assert theirs[0].float().mean() == pytest.approx(float(goals[0, 1]), abs=1e-6)


def test_cutmix_alone_is_refused_where_there_are_only_vectors(photos: MakePhotos):
    labels, generator = torch.tensor([0, 1, 1]), np.random.default_rng(0)
    for shape in ((3, 8), (3, 5, 8)):
        with pytest.raises(InvalidRequest, match="give a larger --thaw, or --mixup"):
            make_mix(0.0, 1.0, 2)(torch.rand(shape), labels, generator)
    _, targets = make_mix(0.4, 1.0, 2)(torch.rand(3, 8), labels, generator)
    assert not torch.equal(targets, targets.round()), "mixup is"
    with pytest.raises(InvalidRequest, match="only vectors"):
        Run(photos, "tiny", epochs=1, batch_size=8, cutmix=1.0, thaw=0.0)()


@pytest.mark.parametrize(("more", "status"), [([], 2), (["--mixup", "0.2"], 0)])
def test_that_cutmix_has_vectors_alone_is_said_before_any_work(
    photos: MakePhotos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    status: int,
):
    arguments = ["--data", photos(), "--name", "x", "--out", tmp_path / "models", "--size", 32]
    arguments += ["--backbone", "tiny", "--weights", "none", "--epochs", 1, "--thaw", 0, *more]
    assert main([str(argument) for argument in [*arguments, "--cutmix", 1]]) == status
    said = capsys.readouterr()
    assert ("Opening photos" in said.out) == (status == 0)
    assert ("only vectors; give a larger --thaw, or --mixup" in said.err) == (status == 2)
    assert ("--cutmix has no part in this run" in said.out) == (status == 0)


def test_labels_are_mixed_with_their_pictures():
    labels = torch.tensor([0, 1, 2])
    inputs = labels[:, None, None, None].float().expand(3, 1, 8, 8)
    for alphas, kinds in (((0.5, 0.0), 1), ((0.0, 1.0), 1), ((0.5, 1.0), 2)):
        mix = make_mix(*alphas, classes=3)
        cut = set()
        for seed in range(10):
            mixed, goals = mix(inputs, labels, np.random.default_rng(seed))
            expected = goals @ torch.tensor([0.0, 1.0, 2.0])
            assert mixed.mean(dim=(1, 2, 3)) == pytest.approx(expected, abs=1e-5)
            assert goals.sum(dim=1) == pytest.approx(torch.ones(3))
            if not torch.equal(mixed, inputs):  # with another picture, not with itself
                cut.add(torch.equal(mixed, mixed.round()))
        assert len(cut) == kinds
    same, untouched = make_mix(0.0, 0.0, classes=3)(inputs, labels, np.random.default_rng(0))
    assert same is inputs and untouched is labels


def test_class_weights_make_classes_count_the_same():
    targets = np.array([0] * 6 + [1] * 3 + [3])
    weights = class_weights(targets, 5)
    assert weights[[2, 4]].tolist() == [0, 0]
    sums = np.bincount(targets, weights[targets], minlength=4)
    assert sums[[0, 1, 3]] == pytest.approx(10 / 3)
    assert weights[targets].mean() == pytest.approx(1)


def test_the_loss_is_weighted_by_weights_alone():
    targets, cpu = np.array([0, 0, 0, 1]), torch.device("cpu")
    assert (
        loss_weights(targets, 2, "none", cpu) is loss_weights(targets, 2, "sampling", cpu) is None
    )
    weights = loss_weights(targets, 2, "weights", cpu)
    assert weights is not None and weights.tolist() == pytest.approx([2 / 3, 2])


def test_balanced_sampling_draws_classes_equally_often():
    targets = np.array([0] * 900 + [1] * 100)
    drawn = targets[make_order(targets, "sampling")(np.random.default_rng(0))]
    assert len(drawn) == 1000 and 430 < drawn.sum() < 570
    for balance in ("none", "weights"):  # by weights the loss is balanced already
        order = make_order(targets, balance)(np.random.default_rng(0))
        assert sorted(order.tolist()) == list(range(1000))


def test_the_moving_average_is_what_its_recursion_says():
    net = nn.Linear(1, 1, bias=False)
    expected = float(net.weight.detach())
    average = MovingAverage(net, 0.9)
    for step in range(1, 41):
        with torch.no_grad():
            net.weight.fill_(float(step))
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert float(net.weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(net.weight.detach()) == 40


def test_between_two_states_the_best_is_found():
    first, last = {"w": torch.tensor([0.0])}, {"w": torch.tensor([10.0])}
    assert interpolate(first, last, 0.25)["w"] == 2.5
    share, state = best_between(first, last, lambda s: (abs(float(s["w"]) - 3.2),))
    assert share == 0.3 and float(state["w"]) == pytest.approx(3)
    for beyond, end in ((-5.0, 0.0), (15.0, 1.0)):
        share, _ = best_between(first, last, lambda s, w=beyond: (abs(float(s["w"]) - w),))
        assert share == end


@pytest.mark.parametrize(
    ("how", "deviation"),
    [
        ("uniform", 1 / math.sqrt(3 * 400)),
        ("normal", 0.01),
        ("glorot", math.sqrt(2 / 500)),
        ("kaiming", math.sqrt(2 / 400)),
    ],
)
def test_a_new_head_spreads_as_its_name_says(how: str, deviation: float):
    head = nn.Linear(400, 100)
    initialise_head(head, how, torch.Generator().manual_seed(0))
    assert float(head.weight.std().detach()) == pytest.approx(deviation, rel=0.05)
    assert not head.bias.any()


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: object) -> Step:
    loss = make_loss(settings.pop("weights", None), settings.pop("smoothing", 0.0))
    defaults = {"amp": "fp32", "parts": 1, "clip": 0.0, "loss": loss}
    return Step(
        model, optimizer, device=torch.device("cpu"), compile=False, world=ALONE,
        **{**defaults, **settings},
    )  # fmt: skip


def a_step(**settings: object) -> torch.Tensor:
    """The weights of a small net after a step of SGD on 7 photos."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs, labels = torch.randn(7, 5) * 4, torch.tensor([0, 1, 2, 0, 1, 2, 0])
    step_on(model, optimizer, **settings)(inputs, labels, labels, None, 7)
    return model.weight.detach()


def test_a_batch_in_parts_gives_the_step_of_the_whole():
    assert torch.allclose(a_step(parts=3), a_step(), atol=1e-6)
    assert torch.allclose(a_step(amp="bf16"), a_step(), rtol=0.1, atol=0.02)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_tells_the_sum_of_the_losses_and_how_many_were_right(parts: int):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    inputs, labels = torch.randn(7, 5) * 4, torch.tensor([0, 1, 2, 0, 1, 2, 0])
    logits = model(inputs).detach()
    right = int((logits.argmax(dim=1) == labels).sum())
    assert 0 < right < 7
    step = step_on(model, torch.optim.SGD(model.parameters(), lr=0.5), parts=parts)
    expected = float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    assert step(inputs, labels, labels, None, 7) == (pytest.approx(expected), right)


def test_smoothing_and_weights_are_those_of_the_formula():
    def loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        log_p = model(inputs).log_softmax(dim=1)
        weights = torch.tensor([0.5, 1.0, 2.0])
        goals = torch.eye(3)[labels] * 0.7 + 0.3 / 3
        return -(goals * weights * log_p).sum() / len(labels)

    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    inputs, labels = torch.randn(7, 5) * 4, torch.tensor([0, 1, 2, 0, 1, 2, 0])
    loss(model, inputs, labels).backward()
    expected = model.weight.detach() - 0.5 * model.weight.grad
    got = a_step(smoothing=0.3, weights=torch.tensor([0.5, 1.0, 2.0]))
    assert torch.allclose(got, expected, atol=1e-5)


def test_long_gradients_are_shortened():
    torch.manual_seed(0)
    start = nn.Linear(5, 3).weight.detach()
    assert float((a_step() - start).norm()) > 0.1
    assert float((a_step(clip=0.01) - start).norm()) <= 0.5 * 0.01 + 1e-6


def test_where_memory_runs_out_batches_are_halved_and_the_step_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    """The error is torch's own; what raises it here stands for a GPU with room for three photos."""
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[bool] = []

    class Small(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs = super().forward(inputs)
            made.append(weakref.ref(outputs))
            if len(inputs) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return outputs

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(made[-1]() is not None))
    torch.manual_seed(0)
    model = Small(5, 3)
    inputs, labels = torch.randn(7, 5) * 4, torch.tensor([0, 1, 2, 0, 1, 2, 0])
    step = step_on(model, torch.optim.SGD(model.parameters(), lr=0.5))
    step(inputs, labels, labels, None, 7)
    assert step.parts == 3  # of two photos at least
    assert held == [False, False], "there is nothing to give back while the error holds it"
    assert torch.allclose(model.weight.detach(), a_step(), atol=1e-6)


def test_a_batch_of_too_few_photos_for_all_parts_is_computed_in_fewer():
    assert torch.allclose(a_step(parts=8), a_step(), atol=1e-6)


def test_where_memory_is_too_small_for_two_photos_it_says_so():
    """One photo alone would break batch norm on a map of 1 x 1."""

    class Full(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if len(inputs) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(inputs)

    model = nn.Sequential(nn.BatchNorm1d(5), Full(5, 3))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    step = step_on(model, torch.optim.SGD(model.parameters(), lr=0.5))
    with pytest.raises(FailedCheck, match="too little memory for 7 photos in 3 parts; try"):
        step(torch.randn(7, 5), labels, labels, None, 7)


def test_no_batch_is_of_one_photo_or_too_small_for_the_processes():
    assert batch_count(33, 16, 1) == 3
    assert batch_count(7, 2, 1) == 3 and batch_count(3, 2, 1) == 1
    assert batch_count(16, 8, 8) == 2
    with pytest.raises(InvalidRequest, match="a batch of 4 of the 9 photos gives 5 processes not"):
        batch_count(9, 5, 5)
    assert [most_parts(photos, 2) for photos in (2, 3, 7, 8, 9, 12)] == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "ema": 0.9},
        {"optimizer": "momentum", "schedule": "one-cycle", "layer_decay": 0.5, "gradual": True},
        {"balance": "weights", "clip": 1.0, "dropout": 0.3, "accumulate": 2, "amp": "bf16"},
        {"balance": "sampling", "wise_ft": True},
    ],
)
def test_with_tricks_too_what_is_left_is_what_was_measured(photos: MakePhotos, settings: dict):
    run = Run(photos, "tiny", epochs=3, batch_size=8, learning_rate=3e-3, **settings)
    result = run()
    losses = [epoch.val_loss for epoch in result.history]
    assert len(set(losses)) == 4 and all(math.isfinite(loss) for loss in losses)
    assert all(math.isfinite(epoch.train_loss) for epoch in result.history[1:])
    assert run.val_logits() == pytest.approx(result.val_logits, rel=1e-3, abs=1e-3)


def test_patience_ends_it(photos: MakePhotos):
    run = Run(photos, "tiny", epochs=50, batch_size=8, learning_rate=1e-8, patience=2)
    result = run()
    assert len(result.history) - 1 == result.best.epoch + 2 < 50


def test_patience_begins_when_all_stages_have_thawed(photos: MakePhotos):
    """All four of tiny in the fourth epoch; none gains, for such logits no such step changes."""
    run = Run(
        photos, "tiny", epochs=50, batch_size=8, learning_rate=1e-8, optimizer="sgd", thaw=1.0,
        gradual=True, patience=1,
    )  # fmt: skip
    with torch.no_grad():
        run.classifier.head.weight.zero_()
        run.classifier.head.bias.copy_(torch.tensor([100.0, -100.0]))
    result = run()
    assert [epoch.epoch for epoch in result.history] == [0, 1, 2, 3, 4]
    assert result.best.epoch == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of sgd, momentum"),
        ({"augment": "none"}, "augment must be one of crop, standard"),
        ({"ema": 1.0}, "ema must be 0 to 0.99999, got 1"),
        ({"dropout": 1.0}, "dropout must be 0 to 0.95, got 1"),
        ({"accumulate": 17}, "accumulate must be 1 to 16, got 17"),
        ({"wise_ft": True, "weights": "none"}, "wise_ft needs a probe"),
        ({"drop_label_errors": True, "head_solver": "none"}, "drop_label_errors needs a probe"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(InvalidRequest, match=message):
        TrainConfig(data="d", name="n", **settings)
