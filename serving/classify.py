"""The command `classify`: photos and folders of them to a running server, answers as text."""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.classify())

import argparse
import asyncio
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from serving.access import access_of, add_access_flags, advised
from serving.answer_text import TABLE_HEADER, csv_header, csv_lines, json_line, line, table_rows
from serving.answers import StreamedResult
from serving.batch_job import first_error, run_job
from serving.batch_plan import PART_PHOTOS, Plan, Share, agree, check_top_k, digest_of
from serving.belief import Belief
from serving.bucket import SCHEMES
from serving.client import AsyncClient
from serving.client_messages import DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT_S
from serving.commandline import Parser, aligned, fail, print_every_name, reader_may_leave
from serving.errors import (
    InvalidRequest,
    NotFound,
    PawprintError,
    Unauthenticated,
    in_utf8,
    listed,
)
from serving.parquet import require_pyarrow
from serving.photo_paths import photo_paths
from serving.places import place
from serving.rollout import described

DEFAULT_ADDRESS = "localhost:50051"
MAX_BATCH = 8  # photos of a message; more save little
TABLE_LIMIT = 20  # photos; more are printed line by line as they are answered


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    print_every_name()
    if options.in_flight < 1:
        fail(f"--in-flight must be 1 or more, got {options.in_flight}")
    if not 0 < options.timeout < math.inf:
        fail(f"--timeout must be more than 0 seconds and finite, got {options.timeout:g}")
    if "" in (*options.photos, options.out):  # of a shell's variable that is not set
        fail("a name is empty; the folder that you are in is .")
    if options.out is None:
        if options.shard is not None:
            fail("--shard needs --out")
        schemes = tuple(f"{scheme}://" for scheme in SCHEMES)
        if bucket := next((photo for photo in options.photos if photo.startswith(schemes)), None):
            fail(f"{bucket}: photos in a bucket need --out LOCATION")
    elif options.json or options.csv:
        fail("--out writes Parquet; --json and --csv are for answers on stdout")
    elif options.accuracy is not None:
        fail(
            "--accuracy is for answers on stdout; with --out compare the columns `probability` and "
            "`unfamiliar`"
        )
    if options.accuracy is not None and not 0 < options.accuracy < 1:
        fail(f"--accuracy must be between 0 and 1, got {options.accuracy:g}")
    try:
        in_utf8("the model", options.model)
        in_utf8("the version", options.version)
        with reader_may_leave():
            if options.out is not None:
                count, failed = asyncio.run(classify_to_parquet(options))
            else:
                paths = photo_paths(map(Path, options.photos))
                count, failed = len(paths), asyncio.run(classify(paths, options))
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except (InvalidRequest, NotFound, Unauthenticated) as error:  # the same again would be in vain
        fail(advised(error, options))
    except (PawprintError, OSError) as error:  # a server that is full or fails, a full disk, ...
        fail(advised(error, options), status=1)
    if failed and options.out is not None:
        # No failure of the job: what starts many of them would stop the others, or try again.
        print(
            f"{failed} of {count} photos could not be classified: see their rows", file=sys.stderr
        )
    elif failed:
        fail(f"{failed} of {count} photos could not be classified", status=1)


async def classify(paths: Sequence[Path], options: argparse.Namespace) -> int:
    """Print the answer for each path, in their order; returns how many have none."""
    # Two messages under way keep a server busy.
    async with _client(options, options.in_flight // 2) as client:
        model = options.model or await _only_model(client)
        belief = None
        if options.top_k not in (0, 1) or options.accuracy is not None:
            expected = await described(client, model, options.version)
            # Else the one mistake would be told of each photo.
            check_top_k(options.top_k, len(expected.labels))
            if options.accuracy is not None:
                belief = Belief(client, expected, options.accuracy)
        answers = client.stream(
            paths,
            model=model,
            version=options.version,
            top_k=options.top_k,
            in_flight=options.in_flight,
        )
        failed = 0
        if options.csv:
            print(csv_header(belief is not None), end="")
        table: list[tuple[object, ...]] = [TABLE_HEADER]
        with _progress(len(paths)) as advance:
            async for path, answer in _in_order(paths, answers):
                failed += answer.result.error is not None
                believed = None if belief is None else await belief.of(answer)
                if options.csv:
                    print(csv_lines(path, answer, believed), end="")
                elif options.json:
                    print(json_line(path, answer, believed))
                elif len(paths) <= TABLE_LIMIT:
                    table += table_rows(path, answer, believed)
                else:
                    print(line(path, answer, believed))
                advance(1)
        if len(table) > 1:
            print(aligned(table))
    return failed


async def classify_to_parquet(options: argparse.Namespace) -> tuple[int, int]:
    """See serving.batch_job; returns how many photos this share has, and how many of
    them failed, now or earlier."""
    require_pyarrow()
    if len(options.photos) != 1:
        raise InvalidRequest("with --out the photos are one folder or one prefix of a bucket")
    (location,) = options.photos
    source, out = place(location), place(options.out)
    share = _share(_shard_of_torchrun() if options.shard is None else options.shard)
    photos = await asyncio.to_thread(source.photos)
    # There may be several servers, which all are to have some of what is under way.
    async with _client(options, options.in_flight // 8) as client:
        model = options.model or await _only_model(client)
        expected = await described(client, model, options.version)
        wanted = Plan(
            photos=source.location,
            count=len(photos),
            digest=digest_of(photos),
            model=expected.model,
            asked=options.version,
            version=expected.version,
            top_k=options.top_k,
            part_photos=PART_PHOTOS,
            familiarity=True,
        )
        plan = await asyncio.to_thread(agree, wanted, out, labels=len(expected.labels))
        mine = sum(
            min(plan.part_photos, plan.count - index * plan.part_photos)
            for index in share.indices(plan)
        )
        with _progress(mine) as advance:
            try:
                failed = await run_job(
                    client, plan, share, list(photos), source, out, options.in_flight, advance
                )
            except BaseExceptionGroup as group:
                raise first_error(group) from group
    return mine, failed


def _share(text: str) -> Share:
    rank, _, of = text.partition("/")
    try:
        return Share(rank=int(rank), of=int(of))
    except ValueError:
        raise InvalidRequest(f"--shard is RANK/OF, as 0/4, got {text!r}") from None


def _shard_of_torchrun() -> str:
    return f"{os.environ.get('RANK', '0')}/{os.environ.get('WORLD_SIZE', '1')}"


def _client(options: argparse.Namespace, photos: int) -> AsyncClient:
    """photos: of a message, if that is not too many."""
    return AsyncClient(
        options.address,
        timeout_s=options.timeout,
        max_batch=min(max(1, photos), MAX_BATCH),
        **access_of(options),
    )


async def _only_model(client: AsyncClient) -> str:
    names = [model.name for model in await client.list_models()]
    if len(names) != 1:
        raise InvalidRequest(
            f"the server has {len(names)} models; choose one by --model: {listed(names)}"
        )
    return names[0]


async def _in_order(
    paths: Sequence[Path], answers: AsyncIterator[StreamedResult]
) -> AsyncIterator[tuple[Path, StreamedResult]]:
    early: dict[int, StreamedResult] = {}
    following = 0
    async for answer in answers:
        early[answer.index] = answer
        while following in early:
            yield paths[following], early.pop(following)
            following += 1


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal and there is more than a glance to wait for."""
    console = Console(stderr=True)
    if not console.is_terminal or total <= TABLE_LIMIT:
        yield lambda photos: None
        return
    columns = (
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else answers for a file would go to the terminal
    )
    with bar as progress:
        task = progress.add_task("", total=total)
        yield lambda photos: progress.advance(task, photos)


_EPILOG = """\
examples:
  classify cat.jpg holiday/                       # by the only model of a server on this machine
  classify holiday/ --model pets --top-k 3 --csv  # three labels each, for other programs
  classify holiday/ --model pets --accuracy 0.95  # says which answers are not sure enough
  PAWPRINT_TOKEN=$TOKEN classify holiday/ --address pets.example:50051 --tls
  classify s3://bucket/photos --out s3://bucket/labels  # very many, to Parquet

exit status:
  0  every photo was classified; with --out: every part is written, and photos that could not be
     classified are rows with an error
  1  some photos could not be classified, or the server does not answer, is full or fails
  2  wrong arguments, or no such model
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="classify",
        description="Classify photos with a running server (see `serve`). Folders are searched\n"
        "for photos, links to folders too; hidden files are passed over. Photos are streamed.\n"
        "Where a version can tell, those that are unlike all that it has learnt from are marked\n"
        "as unfamiliar.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO|FOLDER")
    parser.add_argument(
        "--address",
        default=os.environ.get("PAWPRINT_ADDRESS", DEFAULT_ADDRESS),
        metavar="HOST:PORT",
        help=f"the server (default: PAWPRINT_ADDRESS, else {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="the model; may be left out if the server has only one",
    )
    parser.add_argument(
        "--version",
        default="",
        metavar="VERSION|ALIAS",
        help="a number or an alias (default: the server's choice)",
    )
    parser.add_argument(
        "--top-k", type=int, default=1, metavar="K", help="labels for each photo (default: 1)"
    )
    parser.add_argument(
        "--accuracy",
        type=float,
        metavar="A",
        help="mark answers that are not sure enough: of the others at least this share (0.95) is "
        "right, as the version's analysis showed",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="longest wait for the next answer, seconds (default: %(default)g)",
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        default=DEFAULT_IN_FLIGHT,
        metavar="N",
        help="photos sent ahead of their answers (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        metavar="LOCATION",
        help="for very many photos: write Parquet there, in parts (a folder, or s3://, gs://, "
        "az://), and go on where an earlier run stopped; the photos may then be in a bucket too",
    )
    parser.add_argument(
        "--shard",
        metavar="RANK/OF",
        help="with --out: the parts of this machine (default: RANK/WORLD_SIZE, else all)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, one object a line")
    add_access_flags(parser)
    form.add_argument("--csv", action="store_true", help="print CSV, one row for each label")
    return parser
