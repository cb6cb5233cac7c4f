"""The attacks of a robustness report, as strong as the budget allows."""

from functools import partial

from trainer.analysis.attacks.apgd import apgd_cross_entropy, apgd_targeted
from trainer.analysis.attacks.ball import Norm
from trainer.analysis.attacks.gradient import fgsm, pgd
from trainer.analysis.attacks.square import square
from trainer.analysis.settings import Budget
from trainer.analysis.sweep import Attack, Plan


def plans(budget: Budget) -> list[Plan]:
    """In the order in which they are run: from the cheapest to the dearest."""
    return [
        plan
        for norm, epsilons in (("linf", budget.linf), ("l2", budget.l2))
        for plan in _plans_of(norm, epsilons, budget)  # type: ignore[arg-type]
    ]


def _plans_of(norm: Norm, epsilons: tuple[float, ...], budget: Budget) -> list[Plan]:
    pgd_attack: Attack = lambda m, x, goal, ball, g: pgd(  # noqa: E731
        m, x, goal, ball, steps=budget.pgd_steps, restarts=budget.pgd_restarts, generator=g
    )
    starts = "start" if budget.pgd_restarts == 1 else "starts"
    pgd_setting = f"{budget.pgd_steps} steps, {budget.pgd_restarts} {starts}"
    madry = "Madry et al. 2018, arXiv:1706.06083"
    croce = "Croce & Hein 2020, arXiv:2003.01690"
    plan = partial(Plan, norm=norm, epsilons=epsilons)
    return [
        plan(
            name="fgsm", one_step=True,
            source="Goodfellow et al. 2015, arXiv:1412.6572", setting="one step",
            attack=lambda m, x, goal, ball, _: fgsm(m, x, goal, ball),
        ),
        plan(name="pgd", source=madry, setting=pgd_setting, attack=pgd_attack),
        plan(name="pgd", source=madry, setting=pgd_setting, attack=pgd_attack, targeted=True),
        plan(
            name="apgd-ce", source=croce, setting=f"{budget.apgd_steps} steps",
            attack=lambda m, x, goal, ball, g: apgd_cross_entropy(
                m, x, goal, ball, steps=budget.apgd_steps, generator=g
            ),
        ),
        plan(
            name="apgd-dlr", source=f"{croce}, APGD-T",
            setting=f"{budget.apgd_steps} steps towards each of the likeliest wrong classes, at "
            f"most {budget.apgd_targets}; difference of logits for fewer than four classes",
            attack=lambda m, x, goal, ball, g: apgd_targeted(
                m, x, goal, ball, steps=budget.apgd_steps, generator=g,
                most_targets=budget.apgd_targets,
            ),
        ),
        plan(
            name="square", white_box=False,
            source="Andriushchenko et al. 2020, arXiv:1912.00049",
            setting=f"{budget.square_queries} queries",
            attack=lambda m, x, goal, ball, g: square(
                m, x, goal, ball, queries=budget.square_queries, generator=g
            ),
        ),
    ]  # fmt: skip
