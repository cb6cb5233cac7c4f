"""The photos of a folder, of a table of path, label and split, of shards, or of a set by name."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.blob_cache import default_cache
from serving.errors import InvalidRequest, first_line, lacks
from serving.paths import exists, is_dir, is_file
from trainer.console import Progress, unshown
from trainer.errors import InvalidData
from trainer.named import NAMED, find_named
from trainer.shards import find_shard_photos, is_shards
from trainer.tree import SPLITS, Found, distinct_labels, find_files, same_classes, split_of

SUFFIXES = (".csv", ".parquet")
COLUMNS = ("path", "label", "split")
_MORE = None  # csv's name of what a row has beyond its columns


def find_photos(
    where: str | Path,
    datasets: Path | None = None,
    progress: Progress = unshown,
) -> list[Found]:
    """The photos of a folder (trainer.tree), of a table with the columns path, label and split, of
    shards (trainer.shards), or of a data set by its name (trainer.named) below `datasets` (None:
    the user's cache).

    Paths are relative to the table's own folder. Raises InvalidData naming the row or the
    shard that is wrong, InvalidRequest, Unavailable.
    """
    require_there(where)
    if is_shards(str(where)):
        return find_shard_photos(str(where), progress)
    data = Path(where)
    if not _is_table(data):
        if exists(data):
            return find_files(data)
        return find_named(str(data), datasets or default_cache(os.environ) / "datasets")
    if exists(data) and not is_file(data):  # a pipe, which might never end, is read twice
        raise InvalidData(f"{data} is neither a file nor a folder")
    rows = _parquet(data) if data.suffix.lower() == ".parquet" else _csv(data)
    found = [_found(row, number, data) for number, row in rows]
    often = [file for file, count in Counter(each.file for each in found).items() if count > 1]
    if often:
        raise InvalidData(f"{data} names {often[0]} more than once")
    labels = {each.label for each in found}
    if len(labels) < 2:
        have = f"one label ({labels.pop()})" if labels else "no rows"
        raise InvalidData(f"{data} has {have}; expected two labels or more")
    distinct_labels(sorted(labels), str(data))
    splits = {each.split for each in found}
    if None in splits and len(splits) > 1:
        raise InvalidData(f"{data} gives some photos a split and others none; expected all or none")
    if None not in splits:
        if "train" not in splits:
            raise InvalidData(f"{data} has no row of the split train")
        same_classes({s: [each for each in found if each.split == s] for s in splits if s})
    return sorted(
        found, key=lambda each: (SPLITS.index(each.split) if each.split else 0, each.file)
    )


def require_there(where: str | Path) -> None:
    """Raises InvalidData for what can only be a folder, and is none, nor a data set's name."""
    data = Path(where)
    if is_shards(str(where)) or _is_table(data) or exists(data) or str(data) in NAMED:
        return
    raise InvalidData(
        f"no folder {data}, and no data set of that name; there are {', '.join(NAMED)}"
    )


def _is_table(data: Path) -> bool:
    return data.suffix.lower() in SUFFIXES and not is_dir(data)


def _found(row: Mapping[str, Any], number: int, table: Path) -> Found:
    path, label, given = (_text(row.get(name), name, number, table) for name in COLUMNS)
    split = split_of(given)
    if not path or not label:
        raise InvalidData(f"row {number} of {table} has no {'label' if path else 'path'}")
    if given and split is None:
        raise InvalidData(
            f"row {number} of {table} has the split {given!r}; expected {', '.join(SPLITS)} or none"
        )
    return Found(path=table.parent / path, file=path, label=label, split=split)


def _text(value: Any, name: str, number: int, table: Path) -> str:
    """A label may be a number; 0 is one, and what is none is no label."""
    if isinstance(value, list | tuple | dict | bytes):  # each list of labels would be a class
        raise InvalidData(
            f"the {name} in row {number} of {table} is {value!r:.60}; expected text or a number"
        )
    return "" if value is None or value != value else str(value).strip()


def _csv(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            # Strict: else a quotation mark that nothing closes makes one field of all that follows.
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if len(columns) == 1 and any(sign in columns[0] for sign in ";\t|"):
                raise InvalidData(
                    f"{table} has no commas between its columns: {columns[0]!r}; save it with "
                    "commas"
                )
            _require(columns, table)
            reader.fieldnames = columns
            for number, row in enumerate(reader, start=1):
                more = row.pop(_MORE, None) or ()
                if any(value.strip() for value in more):
                    raise InvalidData(
                        f"row {number} of {table} has more than the {len(columns)} columns; put "
                        "what has a comma in it into quotes"
                    )
                if any(row.values()):  # else a spreadsheet's empty row
                    yield number, row
    except csv.Error as error:
        raise InvalidData(
            f"row {number + 1} of {table} can't be read as CSV ({error}); is a quotation mark not "
            "closed, or a text of more than 128 KiB in it?"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidData(f"{table} is not in UTF-8 ({error.reason}); save it so") from error
    except OSError as error:
        raise InvalidData(f"{table} can't be read as CSV: {error}") from error


def _parquet(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidRequest(lacks("reading Parquet", "pyarrow", error, "parquet")) from error
    try:
        with pyarrow.parquet.ParquetFile(table, pre_buffer=False) as file:
            known = file.schema_arrow.names
            _require(known, table)
            wanted = [c for c in COLUMNS if c in known]  # others may hold the pictures themselves
            # Without threads: one that still starts while the process ends aborts it.
            rows = file.read(columns=wanted, use_threads=False).to_pylist()
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:  # of dates, too
        raise InvalidData(f"{table} can't be read as Parquet: {first_line(error)}") from error
    yield from enumerate(rows, start=1)


def _require(columns: Sequence[str], table: Path) -> None:
    missing = [name for name in COLUMNS[:2] if name not in columns]
    if missing:
        raise InvalidData(
            f"{table} has no column {' or '.join(missing)}; it has {', '.join(columns) or 'none'}"
        )
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise InvalidData(f"{table} has {columns.count(name)} columns named {name}")
