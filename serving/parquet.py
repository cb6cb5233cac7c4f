"""Answers as Parquet: one row a photo."""

import io
from collections.abc import Sequence
from typing import Any

from serving.answers import Response, told_of
from serving.errors import InvalidRequest, lacks


def row_of(photo: str, response: Response | None, error: str | None) -> dict[str, Any]:
    result = response.results[0] if response and error is None else None
    labels = result.labels if result else ()
    familiarity, unfamiliar = told_of(result) if result else (None, None)
    return {
        "photo": photo,
        "label": labels[0].name if labels else None,
        "probability": labels[0].probability if labels else None,
        "labels": [label.name for label in labels],
        "probabilities": [label.probability for label in labels],
        "model": response.model if response else None,
        "version": response.version if response else None,
        "error": error,
        "familiarity": familiarity,
        "unfamiliar": unfamiliar,
    }


def parquet_of(rows: Sequence[dict[str, Any]], *, familiarity: bool = True) -> bytes:
    """familiarity: whether its columns are there, which are null where it is not known."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [
            ("photo", pyarrow.string()),
            ("label", pyarrow.string()),
            ("probability", pyarrow.float32()),
            ("labels", pyarrow.list_(pyarrow.string())),
            ("probabilities", pyarrow.list_(pyarrow.float32())),
            ("model", pyarrow.string()),
            ("version", pyarrow.int32()),
            ("error", pyarrow.string()),
        ]
        + [("familiarity", pyarrow.float32()), ("unfamiliar", pyarrow.bool_())] * familiarity
    )
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist(list(rows), schema=schema)
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def failed_rows(data: bytes, name: str) -> int:
    """How many rows of a part hold an error. Raises InvalidRequest where it is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        # Without threads: one that still starts while the process ends aborts it.
        with pyarrow.parquet.ParquetFile(io.BytesIO(data), pre_buffer=False) as part:
            column = part.read(columns=["error"], use_threads=False)["error"]
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise InvalidRequest(
            f"{name} in --out can't be read ({error}); delete it, and it will be made again"
        ) from error
    return len(column) - int(column.null_count)


def require_pyarrow() -> None:
    """Raises InvalidRequest where it is not installed, or can't be loaded."""
    try:
        import pyarrow
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InvalidRequest(lacks("--out", "pyarrow", error, "parquet")) from error
