"""Errors say what to do, in a line that can be read."""

import pytest

from serving.errors import listed


@pytest.mark.parametrize(
    "names, most, text",
    [
        ([], 3, "none"),
        (["a"], 3, "a"),
        ([1, 2, 3], 3, "1, 2, 3"),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, 3, "a, b, c and 2 more"),
    ],
)
def test_long_lists_end(names: list[object], most: int, text: str) -> None:
    assert listed(names, most) == text
