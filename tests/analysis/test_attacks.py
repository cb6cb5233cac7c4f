import math

import pytest
import torch

from tests.analysis.nets import (
    Linear,
    Posterized,
    convnet,
    levels,
    pictures,
    predicted,
    random_linear,
)
from trainer.analysis.attacks.apgd import apgd_cross_entropy, apgd_targeted
from trainer.analysis.attacks.ball import WHOLE_CUBE, Ball, random_start
from trainer.analysis.attacks.fmn import fmn
from trainer.analysis.attacks.goal import Goal
from trainer.analysis.attacks.gradient import fgsm, gradient_descent, pgd, pgd_to_the_end
from trainer.analysis.attacks.square import square
from trainer.analysis.smallest import smallest_on_lattice

SIDE = 16
EPSILON = {"linf": 8 / 255, "l2": 0.8}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


ATTACKS = {
    "fgsm": lambda m, x, goal, ball: fgsm(m, x, goal, ball),
    "pgd": lambda m, x, goal, ball: pgd(m, x, goal, ball, steps=10, generator=seeded()),
    "pgd-restarts": lambda m, x, goal, ball: pgd(
        m, x, goal, ball, steps=10, restarts=2, generator=seeded()
    ),
    "apgd-ce": lambda m, x, goal, ball: apgd_cross_entropy(
        m, x, goal, ball, steps=10, generator=seeded()
    ),
    "apgd-dlr": lambda m, x, goal, ball: apgd_targeted(
        m, x, goal, ball, steps=10, generator=seeded()
    ),
    "square": lambda m, x, goal, ball: square(m, x, goal, ball, queries=60, generator=seeded()),
    "lesson": lambda m, x, goal, ball: gradient_descent(m, x, goal, steps=10),
}


def aims(labels, classes, targeted):
    return Goal(labels=labels, targets=(labels + 1) % classes if targeted else None)


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_ends_on_the_lattice_within_the_ball_and_tells_the_truth(
    name, norm, classes, targeted
):
    model, images = convnet(classes), pictures(6, SIDE)
    labels = predicted(model, images)
    goal = aims(labels, classes, targeted)
    ball = Ball(norm=norm, epsilon=EPSILON[norm])
    result = ATTACKS[name](model, images, goal, ball)
    assert torch.equal(levels(result.adversarial).float() / 255, result.adversarial)
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    delta = (levels(result.adversarial) - levels(images)).double()
    if name != "lesson":  # which knows no ball
        if norm == "linf":
            assert delta.abs().max() <= 8
        else:
            assert delta.flatten(1).norm(dim=1).max() <= EPSILON["l2"] * 255 + 1e-6
    says = predicted(model, result.adversarial)
    reached = says == goal.targets if targeted else says != labels
    assert torch.equal(result.success, reached)
    assert (result.evaluations > 0).all()
    again = ATTACKS[name](model, images, goal, ball)
    assert torch.equal(again.adversarial, result.adversarial)


def test_fgsm_is_the_closed_form_on_a_linear_model():
    model, images = random_linear(3, SIDE), pictures(5, SIDE)
    labels = predicted(model, images)
    targets = (labels + 1) % 3
    result = fgsm(
        model, images, Goal(labels=labels, targets=targets), Ball(norm="linf", epsilon=4 / 255)
    )
    # Gradient of minus the cross-entropy of the target: sum over k of (1[k=t] - p_k) w_k.
    chances = model(images).softmax(dim=1)
    ascent = (torch.nn.functional.one_hot(targets, 3) - chances) @ model.weight
    expected = (levels(images) + 4 * ascent.view_as(images).sign().long()).clamp(0, 255)
    assert torch.equal(levels(result.adversarial), expected)


def test_iterated_attacks_are_at_least_as_strong_as_one_step():
    model, images = convnet(5), pictures(24, SIDE)
    goal, ball = Goal(labels=predicted(model, images)), Ball(norm="linf", epsilon=3 / 255)
    once = fgsm(model, images, goal, ball).success.sum()
    for name in ("pgd", "apgd-ce", "apgd-dlr"):
        assert ATTACKS[name](model, images, goal, ball).success.sum() >= once
    assert 0 < once < len(images)  # so that the comparison means something


def test_pgd_reaches_the_targets_in_a_large_ball():
    model, images = convnet(3), pictures(6, SIDE)
    labels = predicted(model, images)
    goal = aims(labels, 3, targeted=True)
    result = pgd(
        model, images, goal, Ball(norm="linf", epsilon=64 / 255), steps=40, generator=seeded()
    )
    assert torch.equal(predicted(model, result.adversarial), goal.targets)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_of_pgd_is_fgsm(norm):
    model, images = convnet(4), pictures(6, SIDE)
    goal, ball = Goal(labels=predicted(model, images)), Ball(norm=norm, epsilon=EPSILON[norm])
    one = pgd(model, images, goal, ball, steps=1, generator=seeded())
    assert torch.equal(one.adversarial, fgsm(model, images, goal, ball).adversarial)


def test_an_image_that_the_model_has_wrong_falls_at_once_and_unchanged():
    model, images = convnet(4), pictures(4, SIDE)
    wrong = (predicted(model, images) + 1) % 4
    result = pgd(
        model,
        images,
        Goal(labels=wrong),
        Ball(norm="linf", epsilon=4 / 255),
        steps=20,
        generator=seeded(),
    )
    assert result.success.all() and torch.equal(result.adversarial, images)
    assert result.evaluations.max() == 2  # once with a gradient, once as the rounded picture


class Counting(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.images, self.seen = net, 0, []

    def forward(self, images):
        self.images += len(images)
        self.seen.append(images.detach().clone())
        return self.net(images)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "apgd-dlr", "square", "lesson"])
def test_images_that_fell_are_not_shown_to_the_model_again(name):
    model, images = convnet(3), pictures(12, SIDE)
    goal, ball = Goal(labels=predicted(model, images)), Ball(norm="linf", epsilon=24 / 255)
    counting = Counting(model)
    result = ATTACKS[name](counting, images, goal, ball)
    assert counting.images <= int(result.evaluations.sum())
    if name == "pgd":
        assert result.success.all() and counting.images < 11 * len(images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_breaks_a_net_that_masks_its_gradient(norm):
    net = convnet(3)
    model, images = Posterized(net, levels=12), pictures(8, SIDE)
    goal = Goal(labels=predicted(model, images))
    ball = Ball(norm=norm, epsilon=32 / 255 if norm == "linf" else 3.0)
    blind = pgd(model, images, goal, ball, steps=20, generator=seeded())
    assert not blind.success.any()
    seen = square(model, images, goal, ball, queries=300, generator=seeded())
    assert seen.success.sum() >= 4
    assert torch.equal(predicted(model, seen.adversarial) != goal.labels, seen.success)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_has_no_gradient_even_where_rounding_undoes_what_it_found(norm):
    asked = []

    def ask(module, inputs):
        asked.append(inputs[0].requires_grad)

    model, images = convnet(5), pictures(24, SIDE)
    goal = Goal(labels=predicted(model, images))
    ball = Ball(norm=norm, epsilon=2.5 / 255 if norm == "linf" else 0.8)
    model.register_forward_pre_hook(ask)
    square(model, images, goal, ball, queries=100, generator=seeded())
    assert asked and not any(asked)


def hyperplane(side, offset):
    """A two-class linear model; every value of the picture 0.5 (128) is far from 0 and 1."""
    weight = torch.randn(1, 3 * side * side, generator=seeded(5))
    original = torch.full((1, 3, side, side), 128 / 255)
    bias = -(weight @ original.flatten()) - offset
    model = Linear(torch.cat([torch.zeros_like(weight), weight]), torch.cat([0 * bias, bias]))
    return model, original, weight


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "apgd-dlr"])
def test_where_a_ball_does_not_suffice_the_attempt_goes_as_far_as_it_does(name):
    model, original, weight = hyperplane(SIDE, offset=20.0)
    goal, ball = Goal(labels=torch.tensor([0])), Ball(norm="linf", epsilon=2 / 255)
    result = ATTACKS[name](model, original, goal, ball)
    assert not result.success.any()
    corner = 128 + 2 * weight.sign().view_as(original).long()
    assert torch.equal(levels(result.adversarial), corner)
    assert torch.equal(levels(pgd_to_the_end(model, original, goal, ball, steps=1)), corner)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fmn_finds_the_distance_to_a_hyperplane(norm):
    model, original, weight = hyperplane(SIDE, offset=20.0)
    exact = 20.0 / (weight.abs().sum() if norm == "linf" else weight.norm()).item()
    found = fmn(model, original, Goal(labels=torch.tensor([0])), norm, steps=100)
    assert exact <= found.distances.item() <= 1.02 * exact
    assert predicted(model, original + found.perturbations).item() == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fmn_crosses_the_boundary_where_most_of_the_picture_is_white(norm):
    model, original, weight = hyperplane(SIDE, offset=20.0)
    stuck = (weight > 0) & (torch.rand(weight.shape, generator=seeded(6)) < 0.8)
    blown_out = torch.where(stuck.view_as(original), 1.0, original)
    model.bias[1] -= (weight @ (blown_out - original).flatten()).item()  # as far away as it was
    free = weight[~stuck]
    exact = 20.0 / (free.abs().sum() if norm == "linf" else free.norm()).item()
    found = fmn(model, blown_out, Goal(labels=torch.tensor([0])), norm, steps=40)
    assert exact <= found.distances.item() <= 1.15 * exact


def test_the_smallest_linf_perturbation_on_the_lattice_is_the_next_whole_level():
    model, original, weight = hyperplane(SIDE, offset=20.0)
    exact = 20.0 / weight.abs().sum().item() * 255
    found = smallest_on_lattice(model, original, Goal(labels=torch.tensor([0])), "linf", steps=60)
    assert found.distances.item() * 255 == pytest.approx(math.ceil(exact), abs=1e-3)
    assert predicted(model, found.adversarial).item() == 1


def test_the_smallest_l2_perturbation_on_the_lattice_is_near_the_hyperplane():
    model, original, weight = hyperplane(SIDE, offset=20.0)
    exact = 20.0 / weight.norm().item()
    found = smallest_on_lattice(model, original, Goal(labels=torch.tensor([0])), "l2", steps=60)
    assert exact <= found.distances.item() <= 1.1 * exact
    assert predicted(model, found.adversarial).item() == 1
    assert torch.equal(levels(found.adversarial).float() / 255, found.adversarial)


def test_what_rounding_undoes_is_told_and_the_smallest_perturbation_survives_it():
    model, original, _ = hyperplane(64, offset=3.0)  # far below half a level for each value
    for norm in ("linf", "l2"):
        found = smallest_on_lattice(model, original, Goal(labels=torch.tensor([0])), norm, steps=60)
        assert not found.survived_rounding.item()
        assert found.success.item() and predicted(model, found.adversarial).item() == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_survives_rounding_is_what_fools_as_the_nearest_8_bit_picture(norm):
    model, images = convnet(3), pictures(12, SIDE)
    goal = Goal(labels=predicted(model, images))
    said = smallest_on_lattice(model, images, goal, norm, steps=20).survived_rounding
    crossed = images + fmn(model, images, goal, norm, steps=20).perturbations
    assert torch.equal(said, predicted(model, levels(crossed) / 255) != goal.labels)
    assert said.any() and not said.all()


def test_an_image_that_already_fools_has_distance_zero_and_a_constant_net_none():
    model, images = convnet(3), pictures(3, SIDE)
    wrong = Goal(labels=(predicted(model, images) + 1) % 3)
    assert smallest_on_lattice(model, images, wrong, "l2", steps=5).distances.tolist() == [0, 0, 0]
    constant = Linear(torch.zeros(2, 3 * SIDE * SIDE), torch.tensor([1.0, 0.0]))
    stuck = smallest_on_lattice(
        constant, images, Goal(labels=torch.zeros(3, dtype=torch.int64)), "linf", steps=5
    )
    assert not stuck.success.any() and torch.equal(stuck.adversarial, images)


def test_a_ball_that_holds_no_other_8_bit_picture_leaves_every_image_as_it_is():
    model, images = convnet(3), pictures(3, SIDE)
    goal = Goal(labels=predicted(model, images))
    for name, attack in ATTACKS.items():
        if name != "lesson":
            result = attack(model, images, goal, Ball(norm="linf", epsilon=0.9 / 255))
            assert torch.equal(result.adversarial, images) and not result.success.any()


class Bowl(torch.nn.Module):
    """Two classes; the second gains by `height` less what the squares of all pixels' levels away
    from `centre` cost, or with a negative `cost`, bring."""

    def __init__(self, centre, height, cost):
        super().__init__()
        self.centre, self.height, self.cost = centre, height, cost

    def forward(self, images):
        away = ((images - self.centre) * 255).flatten(1)
        gain = self.height - self.cost * away.square().mean(dim=1)
        return torch.stack([torch.zeros_like(gain), gain], dim=1)


def test_a_restart_finds_what_lies_behind_a_picture_without_a_gradient():
    grey, goal = torch.full((2, 3, SIDE, SIDE), 128 / 255), Goal(labels=torch.zeros(2).long())
    model, ball = Bowl(grey[:1], height=-30, cost=-1), Ball(norm="linf", epsilon=8 / 255)
    fell = [
        pgd(model, grey, goal, ball, steps=10, restarts=restarts, generator=seeded()).success
        for restarts in (1, 2)
    ]
    assert not fell[0].any() and fell[1].all()


@pytest.mark.parametrize("seed", [0, 1])
def test_auto_pgd_goes_where_algorithm_1_does(seed):
    """Of arXiv:2003.01690, with its condition 1 as in the authors' code; here in plain numbers."""
    model, image = convnet(3), pictures(1, SIDE, seed)
    goal, steps, epsilon = Goal(labels=predicted(model, image)), 100, 1 / 255
    counting, ball = Counting(model), Ball(norm="linf", epsilon=epsilon)
    result = apgd_cross_entropy(counting, image, goal, ball, steps=steps, generator=seeded())
    assert not result.success.any() and len(counting.seen) == 1 + steps + 1
    *seen, concluded = counting.seen

    def climb(x):
        x = x.clone().requires_grad_(True)
        loss = goal.cross_entropy(model(x)).sum()
        return loss.item(), torch.autograd.grad(loss, x)[0].sign()

    def inside(x):
        return x.clamp(image - epsilon, image + epsilon).clamp(0, 1)

    x = previous = best = seen[0]
    last = highest = at_checkpoint = climb(x)[0]
    stride, halvings, rises, since, period = 2 * epsilon, [True], 0, 0, 22
    for step, came in enumerate(seen[1:]):
        target = inside(x + stride * climb(x)[1])
        ahead, back = (1.0, 0.0) if step == 0 else (0.75, 0.25)
        assert torch.allclose(came, inside(x + ahead * (target - x) + back * (x - previous))), step
        loss = climb(came)[0]
        rises, since, last = rises + (loss > last), since + 1, loss
        previous, x = x, came
        if loss > highest:
            best, highest = came, loss
        if since == period:
            stagnates = not halvings[-1] and at_checkpoint >= highest
            halvings.append(rises <= 0.75 * period or stagnates)
            if halvings[-1]:
                stride, x = stride / 2, best
            at_checkpoint, rises, since, period = highest, 0, 0, max(period - 3, 6)
    assert torch.equal(concluded, best)
    assert not all(halvings), "it goes on at one size too"


@pytest.mark.parametrize("classes", [3, 5])
def test_targeted_auto_pgd_climbs_the_ratio_of_differences_of_logits(classes):
    """Equation 7 of arXiv:2003.01690, to be ascended; without a fourth logit its numerator."""
    model, images = random_linear(classes, SIDE), pictures(4, SIDE)
    labels = predicted(model, images)
    goal, counting = aims(labels, classes, targeted=True), Counting(model)
    ball = Ball(norm="linf", epsilon=1 / 255)
    apgd_targeted(counting, images, goal, ball, steps=1, generator=seeded())
    start = counting.seen[0].requires_grad_(True)
    logits = model(start)
    label, target = (logits.gather(1, x[:, None])[:, 0] for x in (labels, goal.targets))
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, 2:4].mean(dim=1) if classes > 3 else 1
    ratio = (label - target) / spread
    (gradient,) = torch.autograd.grad(-ratio.sum(), start)
    edge = (images + gradient.sign() / 255).clamp(0, 1)
    assert (counting.seen[1] - edge).abs().max() < 1e-6


def test_square_tries_ever_smaller_squares():
    """Of p of the picture, p halved as in arXiv:1912.00049, section 5. To a net that tells no
    picture from another none is better than the first, of stripes."""
    grey, queries, epsilon = torch.full((1, 3, SIDE, SIDE), 128 / 255), 200, 8 / 255
    counting = Counting(Linear(torch.zeros(2, 3 * SIDE * SIDE), torch.tensor([1.0, 0.0])))
    goal, ball = Goal(labels=torch.tensor([0])), Ball(norm="linf", epsilon=epsilon)
    square(counting, grey, goal, ball, queries=queries, generator=seeded())
    stripes, *trials = counting.seen[1 : queries + 1]
    assert torch.allclose((stripes - grey).abs(), torch.tensor(epsilon))
    assert len(trials) == queries - 1
    changed = [(trial != stripes)[0].any(dim=0) for trial in trials]
    sides = [mask.any(dim=1).sum().item() for mask in changed]
    widths = [mask.any(dim=0).sum().item() for mask in changed]
    assert all(width <= side for width, side in zip(widths, sides, strict=True))
    edges = torch.tensor([0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    for query, side in enumerate(sides):
        share = 0.8 / 2 ** int((query / queries > edges).sum())
        expected = max(round(SIDE * math.sqrt(share)), 1)
        assert side == expected or (side == 0 and expected < 4), "in a square of the same colours"
    assert max(sides[-40:]) == 1


def test_plain_descent_goes_on_until_one_picture_alone_falls():
    model, original, weight = hyperplane(SIDE, offset=20.0)
    goal = Goal(labels=torch.tensor([0]))
    made = gradient_descent(model, original, goal, steps=60, step_size=0.001)
    moved = (made.adversarial - original).flatten()
    assert made.success.all() and made.evaluations.item() > 20.0 / (0.001 * weight.square().sum())
    assert torch.nn.functional.cosine_similarity(moved, weight[0], dim=0) > 0.9


def test_the_steps_of_pgd_are_small_enough_to_end_inside_the_ball():
    """At 5 levels of 16: forty steps are of one level each."""
    grey, goal = torch.full((1, 3, SIDE, SIDE), 128 / 255), Goal(labels=torch.zeros(1).long())
    model, ball = Bowl(grey + 5 / 255, height=-1, cost=1), Ball(norm="linf", epsilon=16 / 255)
    assert (levels(pgd_to_the_end(model, grey, goal, ball, steps=40)) == 133).all()
    stopped = pgd(model, grey, goal, ball, steps=40, generator=seeded())
    assert ((levels(stopped.adversarial) - 133).abs() <= 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_is_anywhere_in_the_ball(norm):
    grey, epsilon = torch.full((4, 3, SIDE, SIDE), 0.5), EPSILON[norm]
    delta = random_start(grey, Ball(norm=norm, epsilon=epsilon), seeded()) - grey
    assert delta.mean().abs() < 0.1 * delta.std()
    if norm == "linf":
        assert delta.abs().max() <= epsilon + 1e-6
        assert delta.std() == pytest.approx(epsilon / math.sqrt(3), rel=0.05)  # uniform
    else:
        assert delta.flatten(1).norm(dim=1) == pytest.approx(torch.full((4,), epsilon), rel=1e-4)


def test_each_image_may_have_its_own_epsilon():
    model, images = convnet(3), pictures(4, SIDE)
    ball = Ball(norm="linf", epsilon=torch.tensor([1.0, 2.0, 4.0, 8.0]) / 255)
    goal = aims(predicted(model, images), 3, targeted=True)
    result = pgd(model, images, goal, ball, steps=5, generator=seeded())
    reach = (levels(result.adversarial) - levels(images)).abs().flatten(1).amax(dim=1)
    assert (reach <= torch.tensor([1, 2, 4, 8])).all()


def test_settings_that_make_no_sense_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="did you mean 4/255"):
        Ball(norm="linf", epsilon=4)
    with pytest.raises(ValueError, match="above 0"):
        Ball(norm="l2", epsilon=0)
    with pytest.raises(ValueError, match="one of linf, l2"):
        Ball(norm="l1", epsilon=1)
    with pytest.raises(ValueError, match="must differ"):
        Goal(labels=torch.tensor([0, 1]), targets=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        fgsm(convnet(3), pictures(2, SIDE), Goal(labels=torch.tensor([0, 1, 2])), WHOLE_CUBE)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_to_the_end_is_in_the_ball_and_makes_the_net_far_surer_of_what_is_wrong(norm):
    model, images = convnet(3), pictures(8, SIDE)
    goal, ball = Goal(labels=predicted(model, images)), Ball(norm=norm, epsilon=EPSILON[norm])
    stopped = pgd(model, images, goal, ball, steps=10, generator=seeded())
    made = pgd_to_the_end(model, images, goal, ball, steps=10)
    assert torch.allclose(made, levels(made) / 255) and bool(stopped.success.any())
    change = (made - images).flatten(1)
    size = change.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(change, dim=1)
    assert float(size.max()) <= EPSILON[norm] + 1e-5

    def entropy(pixels):
        with torch.no_grad():
            return goal.cross_entropy(model(pixels))

    fell = stopped.success
    assert (entropy(made) > entropy(stopped.adversarial))[fell].all()
    assert (entropy(made) >= entropy(images) - 1e-4).all(), "the largest on the way"
