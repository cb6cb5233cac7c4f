"""Names of classes in plots: of any length, in any script."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 24  # characters


def short_label(label: str) -> str:
    """As much of it as leaves a plot its room."""
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"


def short_file(name: str) -> str:
    """As much of its end, where the number is that tells it from others."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]


@contextmanager
def any_script() -> Iterator[None]:
    """Without a warning for each letter that matplotlib's own font has not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
