"""What `analyze` does once its versions are found."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from serving.access import access_of
from serving.cores import usable_cores
from serving.errors import InvalidRequest, listed
from serving.layout import ANALYSIS
from serving.repository import Repository
from trainer.analysis import compare
from trainer.analysis.analyze import LAST_WORDS, TOLD, fail
from trainer.analysis.gate import CHANGE, Condition, check, measured, parse_condition
from trainer.analysis.headline import headline, in_words, side_by_side
from trainer.analysis.over_grpc import Server
from trainer.analysis.run import AnalysisConfig, analyse
from trainer.analysis.settings import MOST_DRAWN
from trainer.console import Console, reader_may_leave
from trainer.exit_status import FAILED, failed, status_of
from trainer.interrupt import ends_when_interrupted
from trainer.ranks import place_of
from trainer.threads import keep_to_cores, own_cores

_OF_ONE_VERSION = ("linf", "l2", "strangers", "ideal", "recipe", "over_grpc")


@ends_when_interrupted(LAST_WORDS)
def main(
    options: argparse.Namespace, repository: Repository, versions: Sequence[tuple[str, int]]
) -> int:
    """The exit status; `versions`: those that the options name."""
    keep_to_cores()
    # Rounded to ten bits, as a GPU's convolutions are unless told, a net turns where the served
    # file does not: of 20 smallest perturbations 4 were undone.
    torch.backends.cudnn.allow_tf32 = False
    try:
        if options.compare:
            return _compare(options, repository, versions)
        ((name, version),) = versions
        return _analyse(options, repository, name, version)
    except TOLD as error:
        return fail(error, options)


def _analyse(options: argparse.Namespace, repository: Repository, name: str, version: int) -> int:
    conditions = [parse_condition(text) for text in options.fail_under]
    config = AnalysisConfig(
        data=options.data,
        datasets=options.datasets,
        budget=options.budget,
        seed=options.seed,
        photos=options.photos,
        linf=options.linf,
        l2=options.l2,
        strangers=options.strangers,
        ideal=_classes(options.ideal, repository.manifest(name, version).labels),
        recipe=options.recipe or "fourier",
        device=_device(options.device),
        workers=own_cores(os.environ),
    )
    for condition in conditions:  # now, and not after hours
        check(condition, config.thoroughness())
    rank, processes = place_of(os.environ) or (0, 1)
    report = analyse(
        repository,
        name,
        version,
        config,
        server=_server(options, name, version),
        rank=rank,
        processes=processes,
        console=Console(to_stderr=options.json),
    )
    if report is None:
        return 0
    folder = f"{repository.location}/{name}/{version}/{ANALYSIS}"
    with reader_may_leave():
        if options.json:
            print(json.dumps({"report": f"{folder}/report.json"} | headline(report), indent=2))
        else:
            print(in_words(report, folder))
    return _gated(report, conditions)


def _gated(report: Mapping[str, Any], conditions: Sequence[Condition]) -> int:
    failed = [(c, got) for c in conditions if (got := measured(report, c)) < c.least]
    for condition, got in failed:
        it_is = "it may be as low as" if condition.what == CHANGE else "it is"
        print(f"failed: {condition.text}: {it_is} {got:.4f}", file=sys.stderr)
    return FAILED if failed else 0


def _server(options: argparse.Namespace, name: str, version: int) -> Server | None:
    access = access_of(options)
    if options.over_grpc is None:
        return None
    return Server(address=options.over_grpc, name=name, version=version, access=access)


def _compare(
    options: argparse.Namespace, repository: Repository, versions: Sequence[tuple[str, int]]
) -> int:
    given = [flag for flag in _OF_ONE_VERSION if getattr(options, flag)]
    if given:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise InvalidRequest(f"{flags} can't be had with --compare: analyse each version by itself")
    conditions = [parse_condition(text) for text in options.fail_under]
    if any(condition.what != CHANGE for condition in conditions):
        raise InvalidRequest(
            "--fail-under can't be had with --compare but for change, such as change=-0.02: "
            "analyse each version by itself"
        )
    made = compare.compare(
        repository,
        versions,
        options.data,
        budget=options.budget,
        photos=options.photos,
        seed=options.seed,
        device=_device(options.device),
        workers=usable_cores(),
        datasets=options.datasets,
    )
    stem = "-".join(["compare", *(f"{name}-{version}" for name, version in versions)])
    page = Path(f"{stem}.html")
    with reader_may_leave():
        if options.json:
            print(json.dumps(made, indent=2))
        else:
            print(side_by_side(made))
    try:  # last: the figures are out, whatever becomes of the page
        page.write_text(compare.render(made), encoding="utf-8")
    except OSError as error:
        return failed(f"{error}; the figures are above, there is no page", status_of(error))
    if not options.json:
        with reader_may_leave():
            print(page)
    return _gated(made, conditions)


def _classes(text: str | None, labels: Sequence[str]) -> tuple[str, ...] | None:
    """The classes named; None for all. Raises InvalidRequest, suggesting the nearest."""
    if text == "all" or (text is None and len(labels) <= MOST_DRAWN):
        return None
    if text is None:
        return tuple(labels[:MOST_DRAWN])
    if text == "none":
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InvalidRequest(f"--ideal takes classes with commas, all or none, got {text!r}")
    for name in names:
        if name not in labels:
            near = difflib.get_close_matches(name, labels, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed(labels)}"
            raise InvalidRequest(f"no class {name!r}; {hint}")
    return names


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("no CUDA device is usable here; use --device cpu or auto")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
