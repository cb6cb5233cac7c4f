"""Photos to WebDataset shards: python -m trainer.make_shards --data photos --out shards."""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.make_shards())

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from serving.bucket import Bucket
from serving.commandline import Parser
from serving.errors import InvalidRequest, PawprintError
from trainer.console import Console
from trainer.errors import InvalidData
from trainer.exit_status import fail
from trainer.interrupt import INTERRUPTED
from trainer.listing import find_photos
from trainer.shard_places import UNFINISHED
from trainer.shard_writer import Entry, divide, name_entries, write_shard
from trainer.shards import CLASS_NAMES
from trainer.tree import labels_of, require_apart

_DESCRIPTION = """\
Write photos as WebDataset shards: tar files that hold <key>.jpg and <key>.cls for each photo. The
number in <key>.cls is a line of classnames.txt, counted from 0. Shards are named after their split
(train-000000.tar), or photos-000000.tar where there are no splits. The same photos give the same
bytes, and training on the shards gives the same weights as training on the photos.
"""
_EPILOG = """\
examples:
  python -m trainer.make_shards --data photos --out shards
  python -m trainer.make_shards --data food101 --out s3://bucket/food101 --shard-mb 1000

exit status: 0 written, 2 wrong input, 75 a trouble that may pass, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(to_stderr=False)
    try:
        if not 1 <= options.shard_mb <= 100_000:
            raise InvalidRequest(f"--shard-mb must be 1 to 100000, got {options.shard_mb}")
        if not options.data or not options.out:  # as of a variable that is not set: not this folder
            raise InvalidRequest("--data and --out are required; see --help")
        _make(options, console)
    except (PawprintError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED
    console.line(f"Train on them: train --data {options.out}")
    return 0


def _make(options: argparse.Namespace, console: Console) -> None:
    require_apart("--out", options.out, options.data)
    found = find_photos(options.data, options.datasets, console.track)
    entries, left_out = name_entries(found)
    if left_out:
        console.line(f"Left out {len(left_out)} files:")
        for item in left_out:
            console.line(f"  {item.file}: {item.reason}")
    if not entries:
        raise InvalidData(f"{options.data} has no photo to write")
    renamed = sum(entry.key + entry.ending != entry.found.file for entry in entries)
    if renamed:
        console.line(f"{renamed} photos are named otherwise in the shards, where a key has no dot")
    labels = labels_of([entry.found for entry in entries])
    shards = divide(entries, options.shard_mb * 1_000_000)
    write = _to_bucket if "://" in options.out else _to_folder
    write(shards, labels, options.out, console)
    console.line(f"{len(entries)} photos in {len(shards)} shards")


def _to_folder(
    shards: Mapping[str, list[Entry]], labels: Sequence[str], out: str, console: Console
) -> None:
    """All of it is seen at once, when it is whole."""
    folder = Path(out).resolve()  # of a link, where it leads: a folder can't take its place
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidRequest(f"{out} is not an empty folder; choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        if folder.exists():
            _remove(folder, out)
        (beside / CLASS_NAMES).write_text(_names(labels), encoding="utf-8")
        _write(shards, labels, beside, lambda path: None, console)
        beside.chmod(0o755)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _remove(folder: Path, out: str) -> None:
    """Before anything is written, and not by the renaming: where a disk is mounted it can't be."""
    try:
        folder.rmdir()
    except OSError as error:
        raise InvalidRequest(
            f"{out} can't be replaced ({error.strerror}), as where a disk is mounted; choose a "
            "folder in it"
        ) from error


def _to_bucket(
    shards: Mapping[str, list[Entry]], labels: Sequence[str], out: str, console: Console
) -> None:
    """The shards come one by one; until the last is there, a mark keeps them from being read."""
    bucket = Bucket(out)
    if stored := bucket.stored(deep=False):
        found = "half written" if UNFINISHED in stored else "not empty"
        raise InvalidRequest(f"{out} is {found}; empty it, or choose another --out")
    bucket.write(UNFINISHED, b"Not all shards are written yet.\n")
    bucket.write(CLASS_NAMES, _names(labels).encode())

    def upload(path: Path) -> None:
        bucket.upload(path, path.name)
        path.unlink()

    with tempfile.TemporaryDirectory() as folder:
        _write(shards, labels, Path(folder), upload, console)
    bucket.delete([UNFINISHED])


def _write(
    shards: Mapping[str, list[Entry]],
    labels: Sequence[str],
    folder: Path,
    done: Callable[[Path], None],
    console: Console,
) -> None:
    for name in console.track(shards, "Writing shards", len(shards)):
        write_shard(folder / name, shards[name], labels)
        done(folder / name)


def _names(labels: Sequence[str]) -> str:
    return "".join(f"{label}\n" for label in labels)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m trainer.make_shards",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="photos, as for `train`")
    parser.add_argument(
        "--datasets",
        type=Path,
        metavar="DIR",
        help="folder of the data sets that are given by name",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="an empty folder, or s3://, gs://, az:// with a bucket and a prefix",
    )
    parser.add_argument(
        "--shard-mb", type=int, default=256, metavar="N", help="largest shard, MB (default: 256)"
    )
    return parser
