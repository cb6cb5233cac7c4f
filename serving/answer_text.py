"""An answer of the server about one photo, as text: rows of a table, a line, JSON, CSV.

believed: whether its best label may be believed; None where nobody asked. An unfamiliar photo is
told as such, whose answer is never believed.
"""

import json
from pathlib import Path

from serving.answers import StreamedResult, told_of
from serving.csv_text import csv_text
from serving.visible import visible

TABLE_HEADER = ("PHOTO", "LABEL", "PROBABILITY", "MS")
_CSV_HEADER = ("photo", "model", "version", "rank", "label", "probability", "error")
_CSV_LAST = ("familiarity", "unfamiliar")  # behind what was there before them


def table_rows(
    path: Path, answer: StreamedResult, believed: bool | None
) -> list[tuple[object, ...]]:
    if answer.result.error is not None:
        return [(path, f"error: {answer.result.error}", "", "")]
    return [
        (
            path if rank == 0 else "",
            _doubted(label.name, answer, believed) if rank == 0 else label.name,
            f"{label.probability:.4f}",
            f"{1e3 * answer.latency_s:.1f}" if rank == 0 else "",
        )
        for rank, label in enumerate(answer.result.labels)
    ]


def line(path: Path, answer: StreamedResult, believed: bool | None) -> str:
    if answer.result.error is not None:
        return visible(f"{path}: error: {answer.result.error}")
    labels = ", ".join(f"{label.name} {label.probability:.4f}" for label in answer.result.labels)
    return visible(f"{path}: {_doubted(labels, answer, believed)}")


def _doubted(text: str, answer: StreamedResult, believed: bool | None) -> str:
    if answer.result.unfamiliar:
        return f"unfamiliar: {text}"
    return f"not sure: {text}" if believed is False else text


def json_line(path: Path, answer: StreamedResult, believed: bool | None) -> str:
    value = _json_value(path, answer)
    if believed is not None:
        value["believed"] = believed
    return json.dumps(value, ensure_ascii=False)


def _json_value(path: Path, answer: StreamedResult) -> dict[str, object]:
    if answer.result.error is not None or answer.response is None:
        return {"photo": str(path), "error": answer.result.error}
    familiarity, unfamiliar = told_of(answer.result)
    return {
        "photo": str(path),
        "model": answer.response.model,
        "version": answer.response.version,
        "labels": [
            {"name": label.name, "index": label.index, "probability": round(label.probability, 6)}
            for label in answer.result.labels
        ],
        "familiarity": None if familiarity is None else round(familiarity, 6),
        "unfamiliar": unfamiliar,
        "latency_ms": round(1e3 * answer.latency_s, 3),
    }


def csv_lines(path: Path, answer: StreamedResult, believed: bool | None) -> str:
    """One line for each label, ended by a newline."""
    familiarity, unfamiliar = told_of(answer.result)
    told = ("", "") if familiarity is None else (f"{familiarity:.6f}", str(unfamiliar).lower())
    last = told if believed is None else (str(believed).lower(), *told)
    return csv_text([row + last for row in _csv_rows(path, answer)])


def csv_header(with_belief: bool) -> str:
    return csv_text([_CSV_HEADER + (("believed",) if with_belief else ()) + _CSV_LAST])


def _csv_rows(path: Path, answer: StreamedResult) -> list[tuple[object, ...]]:
    if answer.result.error is not None or answer.response is None:
        return [(path, "", "", "", "", "", answer.result.error)]
    return [
        (
            path,
            answer.response.model,
            answer.response.version,
            rank,
            label.name,
            f"{label.probability:.6f}",
            "",
        )
        for rank, label in enumerate(answer.result.labels, 1)
    ]
