"""The head is the minimum of its convex objective, by independent means."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from trainer.balance import photo_weights
from trainer.config import HEAD_INITS, OPTIMIZERS
from trainer.head_steps import solver_by_steps
from trainer.metrics import mean_recall
from trainer.probe import PENALTIES, Head, Solver, fit_head, fit_probe


def blobs(
    n: int = 90, width: int = 6, classes: int = 3, noise: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(0, 1, (classes, width))
    return 5 + 3 * (centres[labels] + noise * generator.normal(0, 1, (n, width))), labels


def objective(head: Head, x: np.ndarray, labels: np.ndarray, penalty: float) -> float:
    """As documented, in its own words: penalty in units of the mean square of centred features."""
    unit = np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))
    loss = -log_softmax(head.logits(x), axis=1)[np.arange(len(x)), labels].mean()
    return float(loss + penalty / 2 * np.sum(head.weight**2) * unit)


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3])
def test_no_step_from_the_solution_goes_down(penalty: float):
    x, labels = blobs()
    head = fit_head(x, labels, 3, penalty)
    least = objective(head, x, labels, penalty)
    generator = np.random.default_rng(1)
    for size in (1e-1, 1e-2):
        for _ in range(50):
            other = Head(
                weight=head.weight + size * generator.normal(0, 0.1, head.weight.shape),
                bias=head.bias + size * generator.normal(0, 0.1, head.bias.shape),
            )
            assert objective(other, x, labels, penalty) > least - 1e-6


def test_the_gradient_is_zero_at_the_solution():
    x, labels = blobs()
    penalty = 1e-2
    head = fit_head(x, labels, 3, penalty)
    unit = np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))
    residual = (softmax(head.logits(x), axis=1) - np.eye(3)[labels]) / len(x)
    assert np.abs(residual.sum(axis=0)).max() < 2e-4
    gradient = residual.T @ (x - x.mean(0)) + penalty * unit * head.weight
    assert np.abs(gradient).max() < 2e-4 * np.sqrt(unit)


def test_two_classes_agree_with_newtons_method():
    x, labels = blobs(60, 4, 2)
    penalty = 5e-2
    head = fit_head(x, labels, 2, penalty)
    # Binary logistic regression on w = w1 - w0, whose penalty is half: |w0|^2 + |w1|^2 = |w|^2 / 2.
    unit = np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))
    design = np.concatenate([x, np.ones((60, 1))], axis=1)
    ridge = np.diag([penalty * unit / 2] * 4 + [0.0])
    w = np.zeros(5)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ w))
        hessian = (design * (p * (1 - p))[:, None]).T @ design / 60 + ridge
        w -= np.linalg.solve(hessian, design.T @ (p - labels) / 60 + ridge @ w)
    assert head.weight[1] - head.weight[0] == pytest.approx(w[:4], abs=2e-3)
    assert head.bias[1] - head.bias[0] == pytest.approx(w[4], abs=2e-2)


def test_a_warm_start_ends_at_the_same_place():
    x, labels = blobs()
    cold = fit_head(x, labels, 3, 1e-2)
    warm = fit_head(x, labels, 3, 1e-2, fit_head(x, labels, 3, 1e-1))
    assert warm.logits(x) == pytest.approx(cold.logits(x), abs=1e-2)


def test_scaling_all_features_changes_nothing():
    x, labels = blobs()
    one, other = fit_head(x, labels, 3, 1e-2), fit_head(100 * x, labels, 3, 1e-2)
    assert other.logits(100 * x) == pytest.approx(one.logits(x), abs=1e-2)


def test_constant_features_give_the_frequencies_of_the_classes():
    labels = np.array([0, 0, 0, 1])
    head = fit_head(np.ones((4, 2)), labels, 2, 1e-2)
    assert softmax(head.logits(np.ones((1, 2))), axis=1)[0] == pytest.approx([0.75, 0.25], abs=1e-3)


def test_out_of_fold_logits_are_honest():
    """Labels without any relation to the features: a head that has seen them would look good."""
    generator = np.random.default_rng(0)
    x = generator.normal(0, 1, (60, 1, 200))
    labels = generator.permutation(np.arange(60) % 2)
    probe = fit_probe(x, labels, 2, np.random.default_rng(0), penalties=(1e-4,))
    assert np.mean(probe.head.logits(x[:, 0]).argmax(1) == labels) == 1.0
    assert np.mean(probe.out_of_fold.argmax(1) == labels) < 0.75


def test_the_penalty_is_stronger_where_there_is_less_to_learn():
    clear, noisy = blobs(300, noise=0.5), blobs(60, noise=6.0)
    chosen = [
        fit_probe(x[:, None], labels, 3, np.random.default_rng(0), (1, 1e-1, 1e-2, 1e-3)).penalty
        for x, labels in (clear, noisy)
    ]
    assert chosen[0] < chosen[1]


@pytest.mark.parametrize("best", range(7))
def test_the_best_penalty_is_found_wherever_it_lies(best: int):
    """Heads whose loss is known: four of five labels are as the feature says, so logits of
    +-log(4)/2 are the best, and the further from them the worse."""
    labels = np.arange(100) % 2
    x = np.where(np.arange(100) % 5 == 0, 1 - labels, labels)[:, None, None] * 2.0 - 1
    penalties = tuple(10.0**-i for i in range(7))
    tried: list[float] = []

    def solve(
        features: np.ndarray,
        labels: np.ndarray,
        classes: int,
        penalty: float,
        start: Head | None = None,
        tolerance: float = 0.0,
        weights: np.ndarray | None = None,
    ) -> Head:
        tried.append(penalty)
        scale = np.log(4) / 2 * 1.3 ** (penalties.index(penalty) - best)
        return Head(weight=np.array([[-scale], [scale]]), bias=np.zeros(2))

    probe = fit_probe(x, labels, 2, np.random.default_rng(0), penalties, solve=solve)
    assert probe.penalty == penalties[best]
    assert {penalties[i] for i in (best - 1, best + 1) if 0 <= i < 7} < set(tried)


def test_views_are_trained_on_and_the_first_is_judged():
    x, labels = blobs(120, noise=0.8)
    views = np.stack([x, x + 0.1], axis=1)
    probe = fit_probe(views, labels, 3, np.random.default_rng(0))
    assert probe.out_of_fold.shape == (120, 3)
    assert np.mean(probe.out_of_fold.argmax(1) == labels) > 0.8


def test_photos_of_one_scene_are_judged_by_a_head_that_has_seen_none_of_it():
    """Else each row would be told by its twin, whatever is to be learnt."""
    generator = np.random.default_rng(0)
    x = np.repeat(generator.normal(0, 1, (40, 1, 200)), 2, axis=0)
    labels = np.repeat(generator.permutation(np.arange(40) % 2), 2)
    scenes = np.arange(40).repeat(2)

    def accuracy(units: np.ndarray | None) -> float:
        found = fit_probe(x, labels, 2, np.random.default_rng(0), (1e-4,), units=units)
        return float(np.mean(found.out_of_fold.argmax(1) == labels))

    assert accuracy(None) > 0.8
    assert accuracy(scenes) < 0.7


def test_with_fewer_photos_than_columns_the_head_is_the_same():
    generator = np.random.default_rng(0)
    labels = np.arange(24) % 3
    x = generator.normal(0, 1, (24, 1, 60)) + 3
    x[:, 0, :3] += 4 * np.eye(3)[labels]
    probe = fit_probe(x, labels, 3, np.random.default_rng(0), penalties=(1e-2,))
    direct = fit_head(x[:, 0], labels, 3, 1e-2)
    unseen = generator.normal(0, 1, (50, 60)) + 3
    assert probe.head.weight.shape == (3, 60)
    assert probe.head.logits(unseen) == pytest.approx(direct.logits(unseen), abs=5e-3)


def uneven(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, labels = blobs(n, classes=2, noise=2.5, seed=seed)
    kept = (labels == 0) | (np.arange(n) % 20 == 1)  # one in ten of the second class
    return x[kept], labels[kept]


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_balanced_the_rare_class_is_recalled_more_often(balance: str):
    x, labels = uneven(400, seed=0)
    weights = photo_weights(labels, balance)
    unseen, truth = uneven(2000, seed=1)

    def probe(weights: np.ndarray | None) -> np.ndarray:
        found = fit_probe(x[:, None], labels, 2, np.random.default_rng(0), weights=weights)
        return found.head.logits(unseen)

    plain, balanced = probe(None), probe(weights)
    rare = truth == 1
    assert np.mean(balanced[rare].argmax(1) == 1) > np.mean(plain[rare].argmax(1) == 1) + 0.15
    assert mean_recall(balanced, truth) > mean_recall(plain, truth) + 0.05
    assert photo_weights(labels, "none") is None


def test_the_gradient_of_the_weighted_loss_is_zero_at_the_solution():
    x, labels = blobs()
    weights = np.where(labels == 0, 4.0, 0.5)
    head = fit_head(x, labels, 3, 1e-2, weights=weights)
    unit = np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))
    residual = softmax(head.logits(x), axis=1) - np.eye(3)[labels]
    residual *= (weights / weights.sum())[:, None]
    assert np.abs(residual.sum(axis=0)).max() < 2e-4
    gradient = residual.T @ (x - x.mean(0)) + 1e-2 * unit * head.weight
    assert np.abs(gradient).max() < 2e-4 * np.sqrt(unit)


def by_steps(**settings: object) -> Solver:
    known = {"optimizer": "adamw", "rate": 0.0, "epochs": 200, "batch_size": 16, "init": "uniform"}
    return solver_by_steps(**{"seed": 0, **known, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_steps_end_where_l_bfgs_does(optimizer: str, penalty: float):
    x, labels = blobs()
    least = objective(fit_head(x, labels, 3, penalty), x, labels, penalty)
    head = by_steps(optimizer=optimizer)(x, labels, 3, penalty)
    start = objective(Head(weight=np.zeros((3, 6)), bias=np.zeros(3)), x, labels, penalty)
    assert objective(head, x, labels, penalty) < least + 0.02 * (start - least)


def test_steps_weight_rows_as_l_bfgs_does():
    x, labels = blobs()
    weights = np.where(labels == 0, 4.0, 0.5)
    direct = fit_head(x, labels, 3, 1e-2, weights=weights)
    head = by_steps()(x, labels, 3, 1e-2, weights=weights)
    difference = np.abs(head.logits(x) - direct.logits(x)).max()
    assert difference < 0.1 * np.abs(direct.logits(x)).max()


@pytest.mark.parametrize("penalty", [1e-3, 1e-5])
def test_momentum_bears_rows_that_weigh_much(penalty: float):
    """Six rows beside three hundred: with weight 25 they make some batches very steep."""
    labels = np.repeat([0, 1], [300, 6])
    x = np.random.default_rng(0).normal(0, 1, (306, 64)).astype(np.float32)
    x[labels == 1, :8] += 1
    weights = photo_weights(labels, "weights")
    assert weights is not None
    unit = np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))

    def reached(head: Head) -> float:
        losses = -log_softmax(head.logits(x), axis=1)[np.arange(306), labels]
        squares = penalty / 2 * np.sum(head.weight**2) * unit
        return float(losses @ weights / weights.sum() + squares)

    least = reached(fit_head(x, labels, 2, penalty, weights=weights))
    solve = by_steps(optimizer="momentum", epochs=50, batch_size=32)
    head = solve(x, labels, 2, penalty, weights=weights)
    assert reached(head) < least + 0.02 * (np.log(2) - least)


@pytest.mark.parametrize("init", HEAD_INITS)
def test_the_first_steps_show_how_a_head_begins(init: str):
    x, labels = blobs(width=200)
    first, again = (by_steps(init=init, rate=1e-9, epochs=1)(x, labels, 3, 1e-2) for _ in range(2))
    assert np.array_equal(first.weight, again.weight)
    unit = np.sqrt(np.mean(np.sum((x - x.mean(0)) ** 2, axis=1)) / 200)  # of a column
    spread = {"uniform": (3 * 200) ** -0.5, "normal": 0.01, "glorot": (2 / 203) ** 0.5}
    expected = spread.get(init, (2 / 200) ** 0.5)
    assert (first.weight * unit).std() == pytest.approx(expected, rel=0.1)


def test_an_epoch_takes_a_step_for_each_batch():
    """Nine, along a cosine that falls to 0, go five times as far as one."""
    x, labels = blobs()

    def moved(batch_size: int) -> float:
        heads = (
            by_steps(optimizer="sgd", rate=rate, epochs=1, batch_size=batch_size)
            for rate in (1e-9, 1e-3)
        )
        start, end = (solve(x, labels, 3, 1e-2).weight for solve in heads)
        return float(np.linalg.norm(end - start))

    assert moved(10) == pytest.approx(5 * moved(90), rel=0.1)


@pytest.mark.slow
def test_a_probe_solved_by_steps_is_as_good():
    x, labels = blobs()
    one, other = (
        fit_probe(x[:, None], labels, 3, np.random.default_rng(0), (1e-1, 1e-2), solve=solve)
        for solve in (fit_head, by_steps())
    )
    assert np.mean(one.out_of_fold.argmax(1) == other.out_of_fold.argmax(1)) > 0.95


def test_a_penalty_with_which_the_steps_run_away_is_not_chosen():
    """At such a rate the strongest has no head, and others have a bad one."""
    generator, labels = np.random.default_rng(0), np.arange(60) % 2
    x = generator.normal(0.2 * labels[:, None, None], 1, (60, 1, 200)).astype(np.float32)
    solve = by_steps(optimizer="sgd", rate=40.0, epochs=50)
    probe = fit_probe(x, labels, 2, np.random.default_rng(0), solve=solve)
    assert not np.isfinite(solve(x[:, 0], labels, 2, PENALTIES[0]).weight).all()
    assert np.isfinite(probe.out_of_fold).all() and np.isfinite(probe.head.weight).all()
