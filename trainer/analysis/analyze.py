"""The command `analyze`: how far a published version can be trusted, measured and drawn."""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.analyze())

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.access import add_access_flags, advised
from serving.commandline import Parser
from serving.errors import BrokenVersion, InvalidRequest, PawprintError, in_utf8
from serving.launch import go_on
from serving.repository import Repository
from serving.storage import open_repository
from trainer.analysis.settings import BUDGETS, MOST_DRAWN, REFERENCE_EPSILON, k255, read_epsilon
from trainer.exit_status import FAILED, failed, status_of
from trainer.interrupt import INTERRUPTED, ends_when_interrupted
from trainer.listing import require_there

TOLD = (PawprintError, OSError, KeyboardInterrupt)  # without a traceback
_INTERRUPTED = "interrupted; the same command goes on from what is finished"
LAST_WORDS = f"error: {_INTERRUPTED}"

_EPILOG = """\
The result is stored in the version's analysis/ folder: report.html to read, report.json for
programs, the pictures as PNG. Stopped half-way, the same command goes on where it was.

exit status:
    0  analysed
    1  a gate of --fail-under, a broken version, or one that has no photo right
    2  wrong input
   75  a trouble that may pass (a bucket, a server, a full disk): try again
  130  interrupted

examples:
  analyze cats --data photos/                      # the default version of cats
  analyze cats/2 --data photos/ --budget quick     # a first look
  analyze cats/2 --data photos/ --fail-under worst@1/255=0.2 --fail-under clean=0.9
  analyze --compare cats/1 cats/2 --data photos/   # side by side, and which images fool both
  analyze --compare cats cats/2 --data photos/ --fail-under change=-0.02
  torchrun --nproc-per-node 4 -m trainer.analysis.analyze cats/2 --data photos/
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # As in `train`, before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        found = _find(options)
    except TOLD as error:
        return fail(error, options)
    # Torch takes seconds to import: what is wrong by itself has been said by then.
    return go_on("trainer.analysis.carry_out", "train", options, *found)


@ends_when_interrupted(LAST_WORDS)
def _find(options: argparse.Namespace) -> tuple[Repository, list[tuple[str, int]]]:
    """The repository and the versions that the options name. Raises PawprintError, OSError."""
    repository = open_repository(options.models)
    versions = [repository.find(text) for text in options.compare or [options.model]]
    if not options.data:  # as of a shell's variable that is not set: "" is the current folder
        raise InvalidRequest("data must not be empty")
    require_there(in_utf8("data", options.data))
    return repository, versions


def fail(error: BaseException, options: argparse.Namespace) -> int:
    """Say on stderr what one of TOLD is; returns the status."""
    if isinstance(error, BrokenVersion):
        return failed(str(error), FAILED)
    if isinstance(error, PawprintError):
        return failed(advised(error, options), status_of(error))
    if isinstance(error, OSError):
        said = f"{error}; the version is as it was, what is finished is kept"
        return failed(said, status_of(error))
    return failed(_INTERRUPTED, INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="analyze",
        description="Measure how far a published version can be trusted: attacks, corruptions, "
        "calibration, and\nwhat its classes look like to it. Judged on the served ONNX files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model",
        nargs="?",
        help="the version: NAME (the one that callers get), NAME/VERSION or NAME/ALIAS",
    )
    what.add_argument(
        "--compare", nargs=2, metavar=("ONE", "OTHER"), help="put two versions side by side instead"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="photos, as for `train`: a folder, a table, shards or the name of a data set",
    )
    parser.add_argument(
        "--datasets",
        type=Path,
        metavar="DIR",
        help="folder of the data sets that are given by name",
    )
    parser.add_argument(
        "--models",
        default="models",
        metavar="DIR",
        help="model repository: a folder, or s3://, gs://, az:// with a bucket and a prefix "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        choices=list(BUDGETS),
        default="standard",
        help="how thorough the analysis is (default: %(default)s)",
    )
    parser.add_argument(
        "--photos",
        type=_positive,
        metavar="N",
        help="photos to attack, at most (default: by the budget)",
    )
    parser.add_argument(
        "--linf", type=_sizes(1.0), metavar="SIZES",
        help="L-infinity sizes of attacks, such as 1/255,8/255 "
        f"({k255(REFERENCE_EPSILON)} is always one)",
    )  # fmt: skip
    parser.add_argument(
        "--l2", type=_sizes(1000.0), metavar="SIZES", help="L2 sizes of attacks, such as 0.5,1"
    )
    parser.add_argument(
        "--strangers",
        metavar="DIR",
        help="folder of pictures of none of the classes, as callers may send them: the report "
        "says how sure the net is of them",
    )
    parser.add_argument(
        "--ideal",
        metavar="CLASSES",
        help="classes whose ideal images are drawn, with commas; all or none "
        f"(default: all, but no more than {MOST_DRAWN})",
    )
    parser.add_argument(
        "--recipe",
        choices=("fourier", "lesson"),
        help="how ideal images are drawn (default: fourier)",
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="seed of all random choices (default: 0)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="what PyTorch computes on (default: auto)",
    )
    parser.add_argument(
        "--over-grpc",
        metavar="HOST:PORT",
        help="show the adversarial images to a running server, too",
    )
    parser.add_argument(
        "--fail-under",
        action="append",
        default=[],
        metavar="WHAT=ACCURACY",
        help="exit with status 1 if less is measured than that, such as pgd@4/255=0.2, "
        "worst@1/255=0.5, clean=0.9, corruptions=0.6, believed@0.95=0.8 (80 %% of the photos are "
        "answered so surely that 95 %% of these answers are right), unfamiliar=0.9 (so many "
        "strange pictures of each kind are unfamiliar); with --compare "
        "change=-0.02 (the photos show that OTHER is at most two points less accurate than ONE); "
        "may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_access_flags(parser, "access to the server of --over-grpc")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of photos, 1 or more, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def _sizes(most: float) -> Callable[[str], tuple[float, ...]]:
    """A reader of epsilons with commas, in pixel units of [0, 1]."""

    def read(text: str) -> tuple[float, ...]:
        try:
            sizes = sorted({read_epsilon(part) for part in text.split(",")})
        except ValueError:
            sizes = [0.0]
        if not all(0 < size <= most for size in sizes):  # nor is NaN, wherever it is sorted to
            raise argparse.ArgumentTypeError(
                f"expected sizes above 0 and up to {most:g} with commas, such as 1/255,4/255 "
                f"(pixel units of [0, 1]), got {text!r}"
            )
        return tuple(sizes)

    return read
