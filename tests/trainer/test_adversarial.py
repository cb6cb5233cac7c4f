"""Adversarial training: its schedule, its adversary, and what it buys."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serving.errors import InvalidRequest
from tests.trainer.conftest import MakePhotos
from tests.trainer.test_training import Run, inputs_of, solve_head
from trainer.adversarial import Adversary, epsilon_at
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.defence import Defence, parse_defence
from trainer.errors import FailedCheck
from trainer.fitting import _fine_tune
from trainer.training import Epoch


def test_a_defence_is_read_from_its_text():
    assert parse_defence("pgd-3@4/255") == Defence(steps=3, epsilon=4 / 255)
    assert parse_defence("fast@0.01") == Defence(steps=1, epsilon=0.01)
    assert parse_defence("pgd-10@0.5/255") == Defence(steps=10, epsilon=0.5 / 255)


@pytest.mark.parametrize(
    "text", ["pgd@4/255", "pgd-0@4/255", "pgd-3@0", "pgd-3@4", "fast", "fgsm@1/255", "pgd-3@1/0"]
)
def test_another_text_is_refused_with_an_example(text: str):
    with pytest.raises(InvalidRequest, match="such as pgd-3@4/255"):
        TrainConfig(data="x", name="x", adversarial=text)


def test_epsilon_rises_then_stays():
    sizes = [epsilon_at(i / 100, 8.0) for i in range(101)]
    assert sizes[0] == 0.0 and sizes[25] == pytest.approx(4.0) and set(sizes[50:]) == {8.0}
    assert np.allclose(np.diff(sizes[:51]), 8 / 50)


class Linear(nn.Module):
    """Two classes: the sign of w . x + b. The distance to the boundary is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * 4 * 4).view(3, 4, 4))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = ((self.norm(images) - 0.5) * self.weight).flatten(1).sum(dim=1)
        return torch.stack([-score, score], dim=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_adversary_stays_in_the_ball_and_raises_the_loss(steps: int):
    model, epsilon = Linear(), 6 / 255
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = model.eval()(images).argmax(dim=1)
    statistics = model.norm.running_mean.clone()
    adversary = Adversary(Defence(steps=steps, epsilon=epsilon), seed=0)
    attacked = adversary.attack(model.train(), images, labels, progress=1.0)
    assert float((attacked - images).abs().max()) <= epsilon + 1e-6
    assert 0 <= float(attacked.min()) and float(attacked.max()) <= 1
    loss = nn.functional.cross_entropy
    assert loss(model(attacked), labels) > loss(model(images), labels) + 0.01
    assert torch.equal(model.norm.running_mean, statistics)  # an attack is no lesson
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("steps", "share"), [(1, 5 / 8), (2, 1.0), (5, 1.0)])
def test_steps_take_pixels_from_a_random_start_to_the_edge_of_the_ball(steps: int, share: float):
    """One of 1.25 epsilon those that began in the upper five eighths; more of 2.5 in all, each."""
    grey, epsilon = torch.full((64, 3, 4, 4), 0.5), 6 / 255
    adversary = Adversary(Defence(steps=steps, epsilon=epsilon), seed=0)
    attacked = adversary.attack(Linear(), grey, torch.zeros(64).long(), progress=1.0)
    at_edge = (attacked - grey).abs() > epsilon - 1e-6
    assert at_edge.float().mean().item() == pytest.approx(share, abs=0.03)


def test_where_the_schedule_begins_nothing_is_changed():
    images = torch.rand(2, 3, 4, 4)
    adversary = Adversary(Defence(steps=3, epsilon=0.1), seed=0)
    assert adversary.attack(Linear(), images, torch.zeros(2).long(), 0.0) is images


def test_in_parts_and_where_memory_runs_out_the_attack_is_the_same():
    """The error is torch's own; what raises it here stands for a GPU with room for three photos."""

    class Small(Linear):
        room = 7

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    def attacked(parts: int) -> torch.Tensor:
        adversary = Adversary(Defence(steps=2, epsilon=0.1), seed=0)
        return adversary.attack(model, images, torch.arange(7) % 2, 1.0, parts)

    model = Small()
    images = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    whole = attacked(1)
    model.room = 3
    for parts in (1, 3, 7):
        assert torch.allclose(attacked(parts), whole, atol=1e-6)


def test_a_batch_in_parts_is_attacked_in_parts(photos: MakePhotos):
    run = Run(
        photos, "tiny", thaw=1.0, epochs=1, batch_size=8, accumulate=4, adversarial="fast@4/255"
    )
    sizes: list[int] = []
    run.classifier.backbone.register_forward_pre_hook(
        lambda net, inputs: sizes.append(len(inputs[0])) if inputs[0].requires_grad else None
    )
    run()
    in_training = [size for size in sizes if size != len(run.data.splits["val"])]
    assert in_training and max(in_training) <= 2


def test_where_memory_runs_out_fewer_photos_are_measured_at_once(photos: MakePhotos):
    """The error is torch's own; what raises it here stands for a GPU with room for two photos."""

    def end(head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run = Run(photos, "tiny", per_class=20, thaw=1.0, adversarial="pgd-2@2/255")
    solve_head(run, 0.3)
    learner = run.learner()
    expected = learner.withstand()
    assert expected is not None and 0 < np.mean(expected) < 1
    run.classifier.head.register_forward_pre_hook(end)
    assert np.array_equal(learner.withstand(), expected)


def test_a_step_learns_from_what_the_adversary_makes_of_the_photos(photos: MakePhotos):
    run = Run(photos, "tiny", thaw=1.0, adversarial="fast@4/255")
    learner = run.learner()
    seen = inputs_of(learner)
    for progress in (0.0, 1.0):  # where the schedule begins nothing is changed
        learner.learn(range(4), view=0, rate=0.0, step=0, progress=progress)
    as_they_are, attacked = seen
    assert float((attacked - as_they_are).abs().max()) == pytest.approx(4 / 255, abs=1e-6)


def test_robust_accuracy_counts_what_is_out_of_reach():
    """On a linear net the worst loss in the ball is epsilon times the L1 norm of the gradient."""
    model = Linear().eval()
    images = (torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 255).round()
    images = images.clamp(40, 215) / 255  # the ball is not cut off
    logits = model(images)
    labels, margin = logits.argmax(dim=1), (logits[:, 1] - logits[:, 0]).abs() / 2
    reach = (4 / 255) * float(model.weight.detach().abs().sum()) / (1 + 1e-5) ** 0.5
    expected = float((margin > reach).float().mean())
    assert 0.2 < expected < 0.8
    adversary = Adversary(Defence(steps=1, epsilon=4 / 255), seed=0)
    stand = adversary.withstanding(model.train(), images, labels)
    assert float(stand.float().mean()) == pytest.approx(expected, abs=1 / 64)


def test_what_is_wrong_by_a_tie_withstands_nothing():
    model = Linear().eval()
    with torch.no_grad():
        model.weight.zero_()  # all logits are equal, whatever it sees
    adversary = Adversary(Defence(steps=1, epsilon=4 / 255), seed=0)
    images, labels = torch.full((4, 3, 4, 4), 128 / 255), torch.tensor([0, 1, 1, 1])
    stand = adversary.withstanding(model, images, labels)
    assert torch.equal(stand, model(images).argmax(dim=1) == labels)


@pytest.mark.parametrize(("steps", "measured"), [(1, 10), (3, 10), (20, 40)])
def test_what_measures_takes_more_steps_than_training(steps: int, measured: int):
    class Counting(Linear):
        gradients = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.gradients += images.requires_grad
            return super().forward(images)

    model = Counting().eval()
    images = (0.5 + 0.4 * model.weight.detach().sign())[None]
    label = model(images).argmax(dim=1)
    adversary = Adversary(Defence(steps=steps, epsilon=1 / 255), seed=0)
    assert adversary.withstanding(model, images, label).all(), "out of reach: no step is left out"
    assert model.gradients == measured


def test_where_classes_are_balanced_one_label_for_all_is_robust_to_no_avail(photos: MakePhotos):
    folder = photos(per_class=30)
    for photo in sorted((folder / "squares").iterdir())[6:]:
        photo.unlink()
    run = Run(
        lambda **_: folder, "tiny", thaw=1.0, epochs=1, batch_size=8, val_fraction=0.3,
        balance="weights", adversarial="fast@4/255",
    )  # fmt: skip
    with torch.no_grad():  # all are discs to it
        run.classifier.head.weight.zero_()
        run.classifier.head.bias.copy_(torch.tensor([1.0, 0.0]))
    first = run().history[0]
    discs = 1 - run.data.targets("val").mean()
    assert discs > 0.75 and first.val_robust_accuracy == first.val_accuracy == pytest.approx(discs)
    assert first.val_robust_recall == first.val_mean_recall == 0.5
    later = Epoch(1, 0.5, 0.9, 0.6, 0.9, 0.4, val_mean_recall=0.9, val_robust_recall=0.4)
    assert later.better_than(first) and not first.better_than(later)


def test_a_net_that_the_training_made_no_harder_to_fool_is_not_said_to_be(photos: MakePhotos):
    run: Any = Run(photos, "tiny", epochs=1, batch_size=8, adversarial="fast@0.003")
    solve_head(run, 30)  # so that nothing can be better than epoch 0
    run.console, run.track, run.recorded = Console(to_stderr=True), None, None
    with pytest.raises(FailedCheck, match="against fast@0.003 made the net no better on val in 1"):
        _fine_tune(run)


@pytest.mark.slow
def test_it_buys_robust_accuracy(photos: MakePhotos):
    """The same net, photos and seed, trained plainly and against an adversary."""
    withstood, size = {}, 8 / 255
    for adversarial in (None, "pgd-2@8/255"):
        run = Run(
            photos, "tiny", per_class=40, thaw=1.0, epochs=12, learning_rate=3e-3,
            batch_size=8, val_fraction=0.4, adversarial=adversarial,
        )  # fmt: skip
        result = run()
        adversary = Adversary(Defence(steps=1, epsilon=size), seed=0)
        labels = torch.from_numpy(run.data.targets("val"))
        stand = adversary.withstanding(run.classifier, run.val_images(), labels)
        withstood[adversarial] = float(stand.float().mean())
        assert (result.best.val_robust_accuracy is not None) == (adversarial is not None)
    assert result.best.val_robust_accuracy == withstood["pgd-2@8/255"]
    both = {e.epoch: e.val_robust_accuracy + e.val_accuracy for e in result.history}
    assert both[result.best.epoch] == max(both.values())
    assert withstood["pgd-2@8/255"] > withstood[None] + 0.1
