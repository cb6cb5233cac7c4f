"""Errors say what to do, in a line that can be read."""

import pytest

from protos.pawprint.v1 import classifier_pb2 as pb
from serving.errors import InvalidRequest, Overloaded, first_line, listed
from serving.status import failure_of


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


@pytest.mark.parametrize("letters", range(3))
def test_what_is_too_long_to_be_told_is_cut_between_two_characters(letters: int) -> None:
    told = failure_of(InvalidRequest("a" * letters + "猫" * 1000)).message  # of three bytes each
    assert told.endswith("猫...") and 990 < len(told.encode()) <= 1003


@pytest.mark.parametrize("wait_s", [1e7, 1e300, float("inf")])
def test_a_wait_is_never_longer_than_a_message_holds(wait_s: float) -> None:
    """As of a token whose rate is next to nothing."""
    failure = failure_of(Overloaded("later", retry_after_s=wait_s))
    told = pb.RequestError(retry_after_ms=failure.retry_after_ms)
    assert told.retry_after_ms == 2**31 - 1
