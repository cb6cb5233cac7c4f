import torch

from tests.analysis.nets import Linear, levels, pictures
from trainer.analysis.attacks.ball import Ball
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.lattice import from_uint8, repair, round_in_ball, to_uint8


def noise(n, side, seed=1):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_all_levels_survive_the_way_to_floats_and_back():
    stored = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(to_uint8(from_uint8(stored)), stored)


def test_to_uint8_takes_the_nearest_level():
    image = torch.full((1, 3, 1, 1), 0.0)
    image[0, :, 0, 0] = torch.tensor([100.4, 100.6, 255.4]) / 255
    assert to_uint8(image)[0, 0, 0].tolist() == [100, 101, 255]


def test_linf_rounding_takes_the_nearest_level_within_the_whole_levels_of_the_ball():
    original = torch.full((1, 3, 2, 2), 100 / 255)
    moved = original + torch.tensor([2.9, 0.4, -2.9]).view(1, 3, 1, 1) / 255
    rounded = round_in_ball(moved, original, Ball(norm="linf", epsilon=2.9 / 255))
    assert levels(rounded)[0, :, 0, 0].tolist() == [102, 100, 98]


def test_linf_rounding_keeps_to_the_range_of_pixels():
    original = torch.cat([torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)])
    moved = original + torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1) / 255
    rounded = round_in_ball(moved, original, Ball(norm="linf", epsilon=4 / 255))
    assert torch.equal(rounded, original)


def test_l2_rounding_uses_the_budget_where_the_nearest_level_would_leave_nothing():
    original = pictures(3, 64).clamp(0.2, 0.8)
    original = (original * 255).round() / 255
    epsilon = torch.tensor([0.05, 0.1, 0.2])
    delta = noise(3, 64)
    delta *= (epsilon / delta.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    assert torch.equal(levels(original + delta)[0], levels(original)[0])  # nearest: all undone
    rounded = round_in_ball(original + delta, original, Ball(norm="l2", epsilon=epsilon))
    kept = rounded - original
    norms = kept.flatten(1).norm(dim=1)
    assert (norms <= epsilon + 1e-6).all()
    assert (norms >= 0.95 * epsilon).all()
    aligned = (kept * delta).flatten(1).sum(dim=1) / (norms * epsilon)
    nearest_possible = 0.3  # sparse pictures of a dense direction; chance would give 0.00
    assert (aligned > nearest_possible).all()


def test_rounding_a_picture_on_the_lattice_changes_nothing():
    original = pictures(2, 16)
    for norm in ("linf", "l2"):
        ball = Ball(norm=norm, epsilon=0.1)
        assert torch.equal(round_in_ball(original, original, ball), original)


def undone_by_rounding(norm):
    """A linear model and a float picture just past its boundary that rounding brings back."""
    side = 16
    weight = noise(1, side, seed=2).flatten(1)
    original = torch.full((1, 3, side, side), 128 / 255)
    to_boundary = 0.3 / 255 * weight.abs().sum()  # L-infinity distance: 0.3 levels
    if norm == "l2":
        to_boundary = 2.0 / 255 * weight.norm()  # 2 levels, spread over 768 values
    bias = -(weight @ original.flatten()) - to_boundary
    model = Linear(torch.cat([torch.zeros_like(weight), weight]), torch.cat([bias * 0, bias]))
    step = weight.sign() * 0.31 / 255 if norm == "linf" else weight / weight.norm() * 2.01 / 255
    return model, original, original + step.view_as(original)


def test_repair_makes_the_8_bit_picture_fool_again():
    goal = Goal(labels=torch.tensor([0]))
    for norm, epsilon in (("linf", 1 / 255), ("l2", 8 / 255)):
        model, original, crossed = undone_by_rounding(norm)
        assert goal.reached(model(crossed)).all()
        rounded = (crossed * 255).round() / 255
        assert not goal.reached(model(rounded)).any()
        ball = Ball(norm=norm, epsilon=epsilon)
        repaired, fools = repair(model, rounded, original, goal, ball, steps=8)
        assert fools.all() and goal.reached(model(repaired)).all()
        delta = (levels(repaired) - levels(original)).double()
        size = delta.abs().max() if norm == "linf" else delta.norm()
        assert size <= epsilon * 255 + 1e-6
        assert torch.equal(levels(repaired).float() / 255, repaired)


def test_repair_does_not_claim_what_no_picture_in_the_ball_can_do():
    model, original, crossed = undone_by_rounding("l2")
    rounded = (crossed * 255).round() / 255
    too_small = Ball(norm="l2", epsilon=1 / 255)
    _, fools = repair(model, rounded, original, Goal(labels=torch.tensor([0])), too_small, steps=8)
    assert not fools.any()
    tie = Linear(torch.zeros(2, 3 * 16 * 16), torch.zeros(2))
    assert not repair(tie, rounded, original, Goal(labels=torch.tensor([0])), too_small, steps=1)[
        1
    ].any()


def test_repair_moves_fewer_pixels_where_many_overshoot():
    """Each that moves costs 0.2; 32 of them gain 1, the others next to nothing."""
    weight = torch.cat([torch.ones(32), torch.linspace(0.03, 0.01, 736)])
    original = torch.full((1, 3, 16, 16), 128 / 255)

    def model(images):
        moved = ((images - original) * 255).flatten(1)
        gain = (moved * weight - 0.2 * moved.square()).sum(dim=1) - 10
        return torch.stack([torch.zeros_like(gain), gain], dim=1)

    ball, goal = Ball(norm="linf", epsilon=1 / 255), Goal(labels=torch.tensor([0]))
    assert not repair(model, original, original, goal, ball, steps=3)[1].any()
    repaired, fools = repair(model, original, original, goal, ball, steps=4)
    assert fools.all() and (repaired != original).sum() == 768 // 8
