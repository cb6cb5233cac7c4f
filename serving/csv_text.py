"""Rows as CSV that every reader takes for the same rows."""

import csv
import io
from collections.abc import Sequence


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """Each row ends with a line feed; None is an empty cell."""
    text = io.StringIO()
    # To readers a carriage return ends a row too, but not every Python quotes it.
    returns = any("\r" in str(cell) for row in rows for cell in row)
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    )
    writer.writerows(rows)
    return text.getvalue()
