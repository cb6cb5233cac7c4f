import re

import pytest

from serving.errors import InvalidRequest
from trainer.analysis.analyze import _parser
from trainer.analysis.gate import check, measured, parse_condition
from trainer.analysis.run import AnalysisConfig
from trainer.analysis.settings import k255

REPORT = {
    "clean": {"fp32": {"accuracy": 0.9}},
    "corruptions": {"mean_accuracy": 0.6},
    "attacks": [
        {"key": "pgd-linf", "points": [{"epsilon": 4 / 255, "accuracy": 0.25}]},
        {"key": "pgd-l2", "points": [{"epsilon": 0.5, "accuracy": 0.5}]},
    ],
    "trust": {
        "thresholds": [
            {"precision": "fp32", "accuracy": 0.9, "answered": 1.0},
            {"precision": "fp32", "accuracy": 0.95, "answered": 0.75},
            {"precision": "fp32", "accuracy": 0.99, "answered": None},
            {"precision": "int8", "accuracy": 0.95, "answered": 0.5},
        ],
        "strangers": [{"unfamiliar": 1.0}, {"unfamiliar": 0.25}],
    },
    "paired": {"change": 0.01, "low": -0.02},
    "worst_case": {
        "linf": [{"epsilon": 1 / 255, "accuracy": 0.75}, {"epsilon": 4 / 255, "accuracy": 0.125}]
    },
}


@pytest.mark.parametrize(
    ("text", "accuracy"),
    [
        ("pgd@4/255=0.2", 0.25),
        ("pgd-l2@0.5=0.2", 0.5),
        ("pgd-l2@1/2=0.2", 0.5),
        ("worst@4/255 = 0.2", 0.125),
        ("worst@1/255 = 0.2", 0.75),
        ("clean=0.5", 0.9),
        ("corruptions=0.5", 0.6),
        ("believed@0.95=0.8", 0.75),
        ("believed@0.99=0.1", 0.0),
        ("unfamiliar=0.9", 0.25),
        ("change=-0.05", -0.02),
    ],
)
def test_a_condition_reads_the_figure_it_names(text, accuracy):
    assert measured(REPORT, parse_condition(text)) == accuracy


@pytest.mark.parametrize(
    "text",
    [
        "pgd",
        "pgd=0.2",
        "clean@4/255=0.2",
        "pgd@4/0=0.2",
        "pgd@0/255=0.2",
        "pgd@4/255=1.5",
        "pgd@4/255=x",
        "believed=0.9",
        "unfamiliar@0.5=0.9",
        "change=-1.5",
        "change@0.5=-0.1",
        "clean=-0.1",
        "",
    ],
)
def test_a_condition_that_makes_no_sense_says_what_is_expected(text):
    with pytest.raises(InvalidRequest, match="pgd@4/255=0.2"):
        parse_condition(text)


def test_of_a_version_that_cannot_tell_no_picture_is_unfamiliar():
    report = {"trust": {"strangers": [{"unfamiliar": None}]}}
    assert measured(report, parse_condition("unfamiliar=0.9")) == 0.0


def test_an_attack_or_a_size_that_was_not_measured_names_those_that_were():
    with pytest.raises(InvalidRequest, match="did you mean pgd-l2"):
        measured(REPORT, parse_condition("pdg-l2@0.5=0.2"))
    with pytest.raises(InvalidRequest, match="no attack 'zzz' in the report; there are pgd-linf"):
        measured(REPORT, parse_condition("zzz@0.5=0.2"))
    with pytest.raises(InvalidRequest, match="not measured at the epsilon .* but at 4/255"):
        measured(REPORT, parse_condition("pgd@2/255=0.2"))
    with pytest.raises(InvalidRequest, match="is not tried; 0.9, 0.95, 0.99 are"):
        check(parse_condition("believed@0.8=0.2"), AnalysisConfig(data="photos").thoroughness())
    check(parse_condition("believed@0.95=0.2"), AnalysisConfig(data="photos").thoroughness())


@pytest.mark.parametrize(
    "text", ["pgd@1/510=0.2", "worst@0.1=0.2", "fgsm@0.0123=0.2", "pgd-l2@12.34567=0.2"]
)
def test_the_sizes_that_it_asks_for_can_be_given_as_it_writes_them(text):
    condition = parse_condition(text)
    with pytest.raises(InvalidRequest) as refused:
        check(condition, AnalysisConfig(data="photos").thoroughness())
    (flags,) = re.findall("add (.*)", str(refused.value))
    given = _parser().parse_args(["pets", "--data", "photos", *flags.split()])
    config = AnalysisConfig(data="photos", linf=given.linf, l2=given.l2)
    check(condition, config.thoroughness())


def test_a_size_is_read_as_a_report_writes_it():
    for epsilon in (0.1, 0.0123):
        condition = parse_condition(f"worst@{k255(epsilon)}=0.2")
        check(condition, AnalysisConfig(data="photos", linf=(epsilon,)).thoroughness())
    assert k255(4 / 255) == "4/255"
    assert parse_condition("worst@0.5/255=0.2").at == 0.5 / 255
    with pytest.raises(InvalidRequest):
        parse_condition("worst@1/2/3=0.2")
