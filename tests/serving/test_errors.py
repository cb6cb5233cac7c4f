"""Errors say what to do, in a line that can be read."""

import pytest

from serving.errors import first_line, listed


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


@pytest.mark.parametrize(
    "said, text",
    [(ValueError("\n one line\nand pages"), "one line"), (KeyError(), "KeyError"), ("a", "a")],
)
def test_of_an_errors_pages_the_first_line_is_told(said: object, text: str) -> None:
    assert first_line(said) == text
