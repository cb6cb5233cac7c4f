"""The command `analyze`: how far a published version can be trusted, measured and drawn."""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.analyze())

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from serving.access import access_of, add_access_flags, advised
from serving.cores import usable_cores
from serving.errors import BrokenVersion, InvalidRequest, PawprintError, listed
from serving.layout import ANALYSIS
from serving.storage import open_repository
from trainer.analysis import compare
from trainer.analysis.gate import check, measured, parse_condition
from trainer.analysis.headline import headline, in_words, side_by_side
from trainer.analysis.over_grpc import Server
from trainer.analysis.report import k255
from trainer.analysis.run import AnalysisConfig, analyse
from trainer.analysis.settings import BUDGETS, MOST_DRAWN, REFERENCE_EPSILON
from trainer.console import Console, reader_may_leave
from trainer.exit_status import FAILED, status_of
from trainer.interrupt import INTERRUPTED, ends_when_interrupted
from trainer.threads import keep_to_cores, own_cores

_OF_ONE_VERSION = ("fail_under", "linf", "l2", "strangers", "ideal", "recipe", "over_grpc")
_INTERRUPTED = "interrupted; the same command goes on from what is finished"
_EPILOG = """\
The result is stored in the version's analysis/ folder: report.html to read, report.json for
programs, the pictures as PNG. Stopped half-way, the same command goes on where it was.

exit codes: 0 analysed, 1 a gate of --fail-under or a broken version, 2 wrong input, 75 a trouble
that may pass (a bucket, a server, a full disk: try again), 130 interrupted

examples:
  analyze cats --data photos/                        the default version of cats
  analyze cats/2 --data photos/ --budget quick       a first look
  analyze cats/2 --data photos/ --fail-under worst@1/255=0.2 --fail-under clean=0.9
  analyze --compare cats/1 cats/2 --data photos/     side by side, with transfer
  torchrun --nproc-per-node 4 -m trainer.analysis.analyze cats/2 --data photos/
"""


@ends_when_interrupted(f"error: {_INTERRUPTED}")
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    keep_to_cores()
    # Rounded to ten bits, as a GPU's convolutions are unless told, a net turns where the served
    # file does not: of 20 smallest perturbations 4 were undone.
    torch.backends.cudnn.allow_tf32 = False
    try:
        return _compare(options) if options.compare else _analyse(options)
    except KeyboardInterrupt:
        return _failed(_INTERRUPTED, INTERRUPTED)
    except BrokenVersion as error:
        return _failed(str(error), FAILED)
    except PawprintError as error:
        return _failed(advised(error, options), status_of(error))
    except OSError as error:
        said = f"{error}; the version is as it was, what is finished is kept"
        return _failed(said, status_of(error))


def _failed(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _analyse(options: argparse.Namespace) -> int:
    conditions = [parse_condition(text) for text in options.fail_under]
    repository = open_repository(options.models)
    name, version = repository.find(options.model)
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
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
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
    failed = [(c, got) for c in conditions if (got := measured(report, c)) < c.least]
    for condition, got in failed:
        print(f"failed: {condition.text}: it is {got:.4f}", file=sys.stderr)
    return FAILED if failed else 0


def _server(options: argparse.Namespace, name: str, version: int) -> Server | None:
    access = access_of(options)
    if options.over_grpc is None:
        return None
    return Server(address=options.over_grpc, name=name, version=version, access=access)


def _compare(options: argparse.Namespace) -> int:
    given = [flag for flag in _OF_ONE_VERSION if getattr(options, flag)]
    if given:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise InvalidRequest(f"{flags} can't be had with --compare: analyse each version by itself")
    repository = open_repository(options.models)
    versions = [repository.find(text) for text in options.compare]
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
        return _failed(f"{error}; the figures are above, there is no page", status_of(error))
    if not options.json:
        with reader_may_leave():
            print(page)
    return 0


def _classes(text: str | None, labels: Sequence[str]) -> tuple[str, ...] | None:
    """The classes named; None for all. Raises InvalidRequest, suggesting the nearest."""
    if text == "all" or (text is None and len(labels) <= MOST_DRAWN):
        return None
    if text is None:
        return tuple(labels[:MOST_DRAWN])
    names = tuple(name.strip() for name in text.split(",") if name.strip() and text != "none")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="analyze",
        description="Measure how far a published version can be trusted: attacks, corruptions, "
        "calibration, and what its classes look like to it. Judged on the served ONNX files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", help="NAME, NAME/VERSION or NAME/ALIAS")
    what.add_argument("--compare", nargs=2, metavar=("ONE", "OTHER"), help="two versions")
    parser.add_argument(
        "--data", required=True, help="photos, as for `train`: folder, table, shards or name"
    )
    parser.add_argument("--datasets", type=Path, metavar="DIR", help="folder of data sets by name")
    parser.add_argument(
        "--models",
        default="models",
        help="model repository: a folder, or s3://, gs://, az:// with a bucket and a prefix",
    )
    parser.add_argument(
        "--budget", choices=list(BUDGETS), default="standard", help="how thorough (%(default)s)"
    )
    parser.add_argument("--photos", type=_positive, help="at most so many (as the budget says)")
    parser.add_argument(
        "--linf", type=_sizes(1.0), metavar="SIZES",
        help=f"L-infinity epsilons, such as 1/255,8/255 ({k255(REFERENCE_EPSILON)} is always one)",
    )  # fmt: skip
    parser.add_argument(
        "--l2", type=_sizes(1000.0), metavar="SIZES", help="L2 epsilons, such as 0.5,1"
    )
    parser.add_argument(
        "--strangers",
        metavar="DIR",
        help="pictures of none of the classes, as callers may send them: how sure is it of those?",
    )
    parser.add_argument(
        "--ideal",
        metavar="CLASSES",
        help="classes to draw, with commas; all or none "
        f"(default: all, but no more than {MOST_DRAWN})",
    )
    parser.add_argument(
        "--recipe", choices=("fourier", "lesson"), help="of the ideal images (default: fourier)"
    )
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--over-grpc", metavar="HOST:PORT", help="ask a running server about the pictures, too"
    )
    parser.add_argument(
        "--fail-under",
        action="append",
        default=[],
        metavar="WHAT=ACCURACY",
        help="exit 1 if less is measured, such as pgd@4/255=0.2, worst@1/255=0.5, clean=0.9, "
        "corruptions=0.6; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    add_access_flags(parser, "access to the server of --over-grpc")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of photos, 1 or more, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def _sizes(most: float) -> Callable[[str], tuple[float, ...]]:
    """A reader of epsilons with commas, in pixel units of [0, 1]."""

    def read(text: str) -> tuple[float, ...]:
        try:
            sizes = sorted({float(Fraction(part.strip())) for part in text.split(",")})
        except (ValueError, ZeroDivisionError, OverflowError):
            sizes = [0.0]
        if not 0 < sizes[0] <= sizes[-1] <= most:
            raise argparse.ArgumentTypeError(
                f"expected sizes above 0 and up to {most:g} with commas, such as 1/255,4/255 "
                f"(pixel units of [0, 1]), got {text!r}"
            )
        return tuple(sizes)

    return read
