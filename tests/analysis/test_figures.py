"""The statistics of a report against cases worked by hand."""

import numpy as np
import pytest

from trainer.analysis import assemble
from trainer.analysis.assemble import Attacked, Clean
from trainer.analysis.report import below
from trainer.analysis.robustness import proportion, size_of, worst_case
from trainer.analysis.sanity import check_all
from trainer.analysis.settings import BUDGETS, REFERENCE_EPSILON, k255
from trainer.analysis.sweep import Plan, choose_targets

CAT, DOG = [0.9, 0.1], [0.2, 0.8]
EPSILONS = (1 / 255, REFERENCE_EPSILON)


def clean():
    """Four photos: a cat, a cat taken for a dog, a dog, a dog."""
    scores = np.array([CAT, DOG, DOG, DOG], np.float32)
    return Clean(served=scores[None], torched=scores, labels=np.array([0, 0, 1, 1]))


def attacked(name, said, torch_said=None, targeted=False):
    """said: [E][right] what the served model says of the three photos that it has right."""
    served = np.array([[CAT if s == "c" else DOG for s in row] for row in said], np.float32)
    torched = served if torch_said is None else attacked(name, torch_said).piece["torch"]
    plan = Plan(
        name=name,
        norm="linf",
        source="",
        setting="",
        attack=lambda *_: None,
        epsilons=EPSILONS,
        targeted=targeted,
        white_box=name != "square",
    )
    piece = {"served": served[:, None], "torch": torched}
    return Attacked(plan=plan, piece=piece, targets=np.array([1, 0, 0]), seconds=0.0)


def test_a_photo_that_was_wrong_from_the_start_is_never_robust():
    section = assemble.attack_section(attacked("pgd", ["cdd", "ddd"]), clean(), ["fp32"])
    assert [p["correct"] for p in section["points"]] == [3, 2]
    assert all(p["photos"] == 4 for p in section["points"])


def test_what_fools_pytorch_alone_is_no_success():
    section = assemble.attack_section(
        attacked("pgd", ["cdd", "cdd"], torch_said=["ddd", "dcc"]), clean(), ["fp32"]
    )
    assert [p["accuracy"] for p in section["points"]] == [0.75, 0.75]
    assert [p["torch_accuracy"] for p in section["points"]] == [0.5, 0.0]


def test_the_worst_case_is_taken_photo_by_photo():
    one, other = attacked("pgd", ["cdd", "ddd"]), attacked("square", ["ccd", "ccd"])
    points = assemble.worst_section([one, other], clean(), {})["linf"]
    assert [p["correct"] for p in points] == [2, 1]


def test_a_smallest_perturbation_within_the_size_counts_in_the_worst_case():
    smallest = {"linf": {"size": np.array([np.inf, 2 / 255, 1 / 255])}}
    points = assemble.worst_section([attacked("pgd", ["cdd", "cdd"])], clean(), smallest)["linf"]
    assert [p["correct"] for p in points] == [2, 1]


def test_the_search_for_the_smallest_is_an_attack_of_the_report():
    piece = {
        "size": np.array([1 / 255, 3 / 255, np.inf]),
        "served": np.array([[DOG, CAT, DOG], [DOG, DOG, DOG]], np.float32),
        "torch": np.array([DOG, DOG, DOG], np.float32),
        "seconds": np.array(2.0),
    }
    section = assemble.smallest_as_attack("linf", piece, clean(), EPSILONS, ["fp32", "int8"], "FMN")
    points = section["points"]
    assert [p["correct"] for p in points] == [2, 1], "of a cat and two dogs, at 1/255 and 4/255"
    assert [p["by_precision"]["int8"] for p in points] == [0.5, 0.5], "int8 still sees a dog"
    assert [p["torch_accuracy"] for p in points] == [0.5, 0.5] and section["seconds"] == 2


def test_a_smaller_perturbation_of_another_attack_takes_the_place_of_the_smallest():
    black = np.zeros((3, 2, 2, 3), np.uint8)
    search = {
        "size": np.array([3 / 255, 2 / 255, np.inf]),
        "adversarial": black + np.uint8([3, 2, 0])[:, None, None, None],
        "served": np.array([[DOG, CAT, DOG]], np.float32),
        "torch": np.array([DOG, CAT, DOG], np.float32),
        "float_size": np.ones(3),
        "survived": np.ones(3, bool),
    }
    pgd = attacked("pgd", ["ccd", "ddc"])  # at 4/255 all turn: by 1, 4 and 2 levels
    pgd.piece["turned_at"] = np.array([1, 1, 1])
    pgd.piece["adversarial"] = black + np.uint8([1, 4, 2])[:, None, None, None]
    stood = attacked("square", ["cdd", "cdd"])
    stood.piece["turned_at"], stood.piece["adversarial"] = np.full(3, 2), black
    found = assemble.nearest(search, [pgd, stood], "linf", black)
    assert found["size"].tolist() == [1 / 255, 2 / 255, 2 / 255]
    assert found["adversarial"].max(axis=(1, 2, 3)).tolist() == [1, 2, 2]
    assert found["served"][0].argmax(axis=1).tolist() == [1, 0, 0]
    assert found["torch"].argmax(axis=1).tolist() == [1, 0, 0]
    assert search["size"][0] == 3 / 255, "the row of the search itself keeps its figures"
    assert assemble.nearest(search, [pgd], "l2", black)["size"].tolist() == search["size"].tolist()


@pytest.mark.parametrize("seed", range(12))
def test_the_mean_over_corruptions_is_the_share_to_the_last_digit(seed):
    """As `--fail-under corruptions=0.6` compares it."""
    right = np.random.default_rng(seed).permutation(np.arange(15 * 5 * 20) < 15 * 5 * 20 * 0.6)
    said = np.stack([right, ~right], axis=-1).reshape(15, 5, 20, 2).astype(np.float32)
    scores = np.tile(np.float32(CAT), (20, 1))
    photos = Clean(served=scores[None], torched=scores, labels=np.zeros(20, np.int64))
    pieces = {str(kind): {"served": each} for kind, each in enumerate(said)}
    section, _ = assemble.corruption_section(pieces, photos, "")
    assert section["mean_accuracy"] == 0.6 and section["drop"] == pytest.approx(0.4)
    of_kinds = right.reshape(15, 5, 20).mean(axis=2)
    assert np.allclose([each["accuracy"] for each in section["kinds"]], of_kinds)
    assert np.allclose([each["mean"] for each in section["kinds"]], of_kinds.mean(axis=1))


def test_a_net_that_does_better_on_corrupted_photos_is_not_said_to_be_below():
    assert [below(drop) for drop in (0.0789, -0.0212, -1e-17, 0.0)] == [
        "7.9 points below", "2.1 points above", "0.0 points below", "0.0 points below"
    ]  # fmt: skip


def test_a_targeted_attack_that_leads_elsewhere_has_not_reached_its_goal():
    led = attacked("pgd", ["ccd", "ccd"], targeted=True)  # targets: dog, cat, cat
    assert assemble.attack_section(led, clean(), ["fp32"])["points"][0]["correct"] == 2


def test_outcome_names_what_the_first_attack_made_of_each_photo():
    both = [attacked("fgsm", ["cdd", "cdc"]), attacked("pgd", ["ddd", "ddd"])]
    outcome = assemble.outcome_at_reference(both, clean(), {})
    assert outcome.tolist() == [1, 1, 1, 0]
    matrix = assemble.confusion_section(clean(), outcome, ("cat", "dog"))["matrix"]
    assert matrix == [[0, 1], [1, 1]], "no attack led the cat that was taken for a dog anywhere"


def test_classes_without_photos_are_left_out_and_the_others_add_up():
    rows = assemble.class_section(
        clean(),
        np.array([False, False, True, False]),
        np.array([1, 1, 1, 0]),
        np.array([0.5, 0.0, 1.0, 0.5]),
        ("cat", "dog", "bird"),
    )
    assert [(r["label"], r["photos"], r["clean"], r["robust"]) for r in rows] == [
        ("cat", 2, 0.5, 0.0),
        ("dog", 2, 1.0, 0.5),
    ]
    assert rows[0]["leads_to"] == "dog" and rows[1]["leads_to"] == "cat"


def test_a_class_that_is_wrong_from_the_start_is_led_nowhere():
    outcome = np.array([0, 1, 1, 1])
    (cat, _) = assemble.class_section(clean(), clean().right, outcome, np.ones(4), ("cat", "dog"))
    assert cat["clean"] == 0.5 and cat["leads_to"] is None


def test_what_turns_within_a_small_ball_lies_within_the_larger_one():
    """One step may overshoot, and a targeted attack lead elsewhere, at the larger size alone."""
    one_step = attacked("fgsm", ["ddc", "cdd"])
    points = assemble.worst_section([one_step], clean(), {})["linf"]
    assert [p["correct"] for p in points] == [1, 1]
    assert assemble.outcome_at_reference([one_step], clean(), {}).tolist() == [1, 1, 1, 0]


def test_outcome_counts_smallest_perturbations_where_nothing_else_turns():
    smallest = {
        "linf": {
            "size": np.array([4 / 255, np.inf, 5 / 255]),
            "served": np.array([[DOG, DOG, CAT]], np.float32),
        }
    }
    pgd = attacked("pgd", ["cdd", "cdd"])
    assert assemble.outcome_at_reference([pgd], clean(), smallest).tolist() == [1, 1, 1, 1]


def test_each_precision_has_its_own_figures_on_the_photos_as_they_are():
    both = clean()
    int8 = both.served[0][:, ::-1]
    both = Clean(served=np.stack([both.served[0], int8]), torched=int8, labels=both.labels)
    section = assemble.clean_section(both, ["fp32", "int8"])
    assert {name: each["correct"] for name, each in section.items()} == {
        "fp32": 3, "int8": 1, "torch": 1
    }  # fmt: skip
    assert section["fp32"]["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.8, 0.8]).mean())
    # Sure to 0.9 once, right; to 0.8 three times, right twice.
    assert section["fp32"]["ece"] == pytest.approx((0.1 + 3 * (0.8 - 2 / 3)) / 4)


def test_calibration_is_of_the_photos_and_of_what_the_surest_attack_made_of_those_that_were_right():
    surest = {"served": np.array([[DOG, DOG, CAT]], np.float32)}
    section = assemble.calibration_section(clean(), surest)
    assert section["clean"]["ece"] == pytest.approx((0.1 + 3 * (0.8 - 2 / 3)) / 4)
    # Sure to 0.9 once, wrong; to 0.8 three times, right once.
    assert section["attacked"]["ece"] == pytest.approx((0.9 + 3 * (0.8 - 1 / 3)) / 4)
    filled = [each for each in section["attacked"]["bins"] if each["count"]]
    assert [(each["count"], each["accuracy"]) for each in filled] == [
        (3, pytest.approx(1 / 3)),
        (1, 0),
    ]
    assert all(each["low"] < each["confidence"] < each["high"] + 1e-6 for each in filled)


def test_smallest_perturbations_by_hand():
    piece = {
        "size": np.array([np.inf, 4 / 255, 1 / 255]),
        "float_size": np.array([np.inf, 0.5 / 255, 0.9 / 255]),
        "survived": np.array([False, False, True]),
    }
    none = {key: value[:1] for key, value in piece.items()}
    section = assemble.smallest_section({"linf": piece, "l2": none}, {"linf": "FMN", "l2": "FMN"})
    assert section["linf"]["found"] == [1 / 255, 4 / 255] and section["linf"]["not_found"] == 1
    assert section["linf"]["median"] == 4 / 255, "not found is the largest"
    assert section["linf"]["fooled_in_float"] == pytest.approx(2 / 3)
    assert section["linf"]["fooled_after_plain_rounding"] == pytest.approx(1 / 3)
    assert section["l2"]["found"] == [] and section["l2"]["median"] is None


def test_the_descent_of_the_lesson_by_hand():
    lesson = {
        "served": np.array([[DOG, CAT, DOG]], np.float32),
        "torch": np.array([DOG, CAT, CAT], np.float32),
        "linf": np.array([0.1, 0.3, 0.9]),
        "l2": np.array([1.0, 3.0, 9.0]),
    }
    targets, budget = np.array([1, 0, 0]), BUDGETS["quick"]
    section = assemble.descent_section(lesson, targets, budget)
    assert section["reached"]["correct"] == 2 and section["torch_reached"] == 1.0
    assert (section["median_linf"], section["median_l2"]) == (0.2, 2.0), "of those that arrive"
    nowhere = assemble.descent_section(lesson, np.array([0, 1, 0]), budget)
    assert nowhere["reached"]["correct"] == 0 and nowhere["median_linf"] is None


def test_agreement_is_over_all_attacked_pictures_and_the_difference_over_clean_ones():
    photos = clean()
    torched = photos.torched + np.float32([[0.0, 0.0], [0.01, -0.01], [-0.03, 0.03], [0, 0]])
    photos = Clean(served=photos.served, torched=torched, labels=photos.labels)
    made = [
        attacked("pgd", ["cdd", "ddd"], torch_said=["ccc", "ddd"]),
        attacked("fgsm", ["ccc"] * 2),
    ]
    section = assemble.agreement(photos, made)
    assert section["agreement"] == pytest.approx(10 / 12)
    assert section["largest_difference"] == pytest.approx(0.03, abs=1e-6)


def test_worst_case_by_hand():
    rights = [np.array([True, True, False]), np.array([True, False, False])]
    assert worst_case(rights).tolist() == [True, False, False]


def test_proportion_and_size_by_hand():
    p = proportion(np.array([True, True, True, False]))
    assert (p["correct"], p["photos"], p["accuracy"]) == (3, 4, 0.75)
    assert p["low"] == pytest.approx(0.3006, abs=1e-3) and p["high"] == pytest.approx(
        0.9544, abs=1e-3
    )
    original = np.zeros((2, 2, 3), np.uint8)
    altered = original.copy()
    altered[0, 0] = (3, 4, 0)
    assert size_of(original, altered) == pytest.approx((4 / 255, 5 / 255))


def test_targets_differ_from_labels_and_cover_all_others():
    labels = np.arange(3).repeat(100)
    targets = choose_targets(labels, 3, seed=1)
    assert (targets != labels).all()
    assert {(label, t) for label, t in zip(labels, targets, strict=True)} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }


# --- sanity: each check can fail

GOOD = {
    "photos": 16.0,
    "huge_epsilon": 0.5,
    "huge_accuracy": 0.0,
    "usual_accuracy": 0.0,
    "more_accuracy": 0.0,
    "more_factor": 4.0,
    "noise_accuracy": 1.0,
    "zero_margin_gradients": 0.0,
    "zero_entropy_gradients": 0.0,
    "agreement": 1.0,
    "largest_difference": 1e-6,
}
NAMES = {
    "huge_accuracy": "A large perturbation leaves nothing",
    "more": "More steps and restarts change little",
    "noise_accuracy": "Noise of the same size is far weaker than the attack",
    "zero_margin_gradients": "The gradient is not zero",
    "agreement": "The served file agrees with PyTorch",
}


def curve(key, correct, knowledge="white-box", goal="untargeted", norm="linf"):
    points = [
        {"epsilon": e, "correct": c, "photos": 10, "accuracy": c / 10}
        for e, c in zip(EPSILONS, correct, strict=True)
    ]
    return {"key": key, "norm": norm, "knowledge": knowledge, "goal": goal, "points": points}


def report(
    fgsm=(5, 2),
    pgd=(3, 0),
    pgd_l2=(4, 1),
    square=(8, 5),
    worst=0.0,
    defence="none",
    pretrained=True,
    clean=0.9,
):
    return {
        "clean": {"fp32": {"correct": round(100 * clean)}},
        "model": {"defence": defence, "pretrained": pretrained},
        "attacks": [
            curve("fgsm-linf", fgsm),
            curve("pgd-linf", pgd),
            curve("fgsm-l2", (5, 2), norm="l2"),
            curve("pgd-l2", pgd_l2, norm="l2"),
            curve("square-linf", square, knowledge="black-box"),
        ],
        "worst_case": {
            "linf": [
                {"epsilon": EPSILONS[0], "correct": 20},
                {"epsilon": REFERENCE_EPSILON, "correct": round(100 * worst)},
            ]
        },
    }


def verdicts(made, **probe):
    return {check["name"]: check["passed"] for check in check_all(made, GOOD | probe)}


def test_a_sound_evaluation_passes_every_check():
    assert set(verdicts(report()).values()) == {True}


@pytest.mark.parametrize(
    ("made", "probe", "name"),
    [
        (report(), {"huge_accuracy": 0.5}, NAMES["huge_accuracy"]),
        (report(), {"usual_accuracy": 0.5, "more_accuracy": 0.2}, NAMES["more"]),
        (report(), {"usual_accuracy": 0.2, "more_accuracy": 0.5}, NAMES["more"]),
        (report(), {"noise_accuracy": 0.3}, NAMES["noise_accuracy"]),
        (
            report(),
            {"noise_accuracy": 0.9, "usual_accuracy": 1.0, "more_accuracy": 1.0},
            NAMES["noise_accuracy"],
        ),
        (report(), {"zero_margin_gradients": 0.1}, NAMES["zero_margin_gradients"]),
        (report(), {"agreement": 0.9}, NAMES["agreement"]),
        (report(), {"largest_difference": 0.1}, NAMES["agreement"]),
        (report(pgd=(6, 0)), {}, "Many steps are at least as strong as one"),
        (report(pgd_l2=(5, 3)), {}, "Many steps are at least as strong as one"),
        (
            report(square=(2, 0)),
            {},
            "An attack without gradients is no stronger than those with them",
        ),
        (report(worst=0.4), {}, "An undefended net has nothing left"),
        (report(worst=0.04, clean=0.05), {}, "An undefended net has nothing left"),
    ],
)
def test_each_symptom_of_a_wrong_evaluation_fails_its_own_check_alone(made, probe, name):
    failed = {key for key, passed in verdicts(made, **probe).items() if passed is False}
    assert failed == {name}


def test_what_a_check_finds_does_not_speak_of_a_fault_that_it_did_not_find():
    name = "An undefended net has nothing left"
    for worst, accused in ((0.0, False), (0.4, True)):
        finding = next(c for c in check_all(report(worst=worst), GOOD) if c["name"] == name)
        assert ("gradients are masked" in finding["finding"]) is accused
    for left in (0.0, 0.5):
        finding = check_all(report(), GOOD | {"huge_accuracy": left})[0]["finding"]
        assert "More than 5.0 % means" in finding, "the bound, whatever is left"


def test_a_check_names_a_size_as_it_is_given():
    """That of `--linf`, not a decimal fraction."""
    black_box = check_all(report(square=(2, 0)), GOOD)[2]["finding"]
    assert f"20.0 % against 30.0 % at L∞ {k255(EPSILONS[0])}" in black_box


def test_one_photo_more_is_no_evidence_but_two_are():
    for turned, passed in ((1, True), (2, False)):
        probe = {"usual_accuracy": 0.5, "more_accuracy": 0.5 - turned / 16}
        assert verdicts(report(), **probe)[NAMES["more"]] is passed


def test_a_net_from_scratch_may_keep_some():
    name = "An undefended net has nothing left"
    assert verdicts(report(worst=0.4, pretrained=False))[name] is None
    assert verdicts(report(worst=0.0, pretrained=False))[name] is True


def test_a_defended_net_is_not_expected_to_fall():
    verdict = verdicts(report(worst=0.4, defence="pgd at 4/255"))
    assert verdict["An undefended net has nothing left"] is None
