"""The photos of a folder, of a table of path, label and split, of shards, or of a set by name."""

import csv
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from serving.errors import InvalidRequest, to_install
from trainer.errors import InvalidData
from trainer.named import NAMED, default_folder, find_named
from trainer.shards import Track, find_shard_photos, is_shards
from trainer.tree import SPLITS, Found, distinct_labels, find_files, same_classes

SUFFIXES = (".csv", ".parquet")


def find_photos(
    where: str | Path,
    datasets: Path | None = None,
    track: Track = lambda items, title, total: items,
) -> list[Found]:
    """The photos of a folder (trainer.tree), of a table with the columns path, label and split, of
    shards (trainer.shards), or of a data set by its name (trainer.named) below `datasets` (None:
    the user's cache).

    Paths are relative to the table's own folder. `track`: see find_shard_photos. Raises InvalidData
    naming the row or the shard that is wrong, InvalidRequest, Unavailable.
    """
    if is_shards(str(where)):
        return find_shard_photos(str(where), track)
    data = Path(where)
    if data.suffix.lower() not in SUFFIXES or data.is_dir():
        if data.exists():
            return find_files(data)
        if str(data) in NAMED:
            return find_named(str(data), datasets or default_folder(os.environ))
        raise InvalidData(
            f"no folder {data}, and no data set of that name; there are {', '.join(NAMED)}"
        )
    rows = _parquet(data) if data.suffix.lower() == ".parquet" else _csv(data)
    found = [_found(row, number, data) for number, row in enumerate(rows, start=1)]
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


def _found(row: Mapping[str, Any], number: int, table: Path) -> Found:
    path, label, given = (_text(row.get(name)) for name in ("path", "label", "split"))
    split = given or None
    if not path or not label:
        raise InvalidData(f"row {number} of {table} has no {'label' if path else 'path'}")
    if split is not None and split not in SPLITS:
        raise InvalidData(
            f"row {number} of {table} has the split {split!r}; expected {', '.join(SPLITS)} or none"
        )
    return Found(path=table.parent / path, file=path, label=label, split=split)


def _text(value: Any) -> str:
    """A label may be a number; 0 is one."""
    return "" if value is None else str(value).strip()


def _csv(table: Path) -> list[Mapping[str, Any]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(reader.fieldnames or ())
            if len(columns) == 1 and any(sign in columns[0] for sign in ";\t|"):
                raise InvalidData(
                    f"{table} has no commas between its columns: {columns[0]!r}; save it with "
                    "commas"
                )
            _require(columns, table)
            return list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidData(f"{table} can't be read as CSV: {error}") from error


def _parquet(table: Path) -> list[Mapping[str, Any]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise InvalidRequest(f"reading Parquet needs pyarrow; {to_install('parquet')}")
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.read_table(table)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InvalidData(f"{table} can't be read as Parquet: {error}") from error
    _require(content.column_names, table)
    rows: list[Mapping[str, Any]] = content.to_pylist()
    return rows


def _require(columns: Iterable[str], table: Path) -> None:
    known = list(columns)
    missing = [name for name in ("path", "label") if name not in known]
    if missing:
        raise InvalidData(
            f"{table} has no column {' or '.join(missing)}; it has {', '.join(known) or 'none'}"
        )
