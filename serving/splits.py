"""Shares of a model's calls that go to another version: canary and shadow.

`pets=canary:0.1,birds=7:0.01` gives a tenth of the calls of pets to the version that the alias
`canary` names, and a hundredth of those of birds to version 7.
"""

import hashlib
import random
import re
from dataclasses import dataclass

from serving.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Split:
    reference: str  # a version number or an alias
    share: float  # of the calls, 0 to 1


def read_splits(text: str, setting: str) -> dict[str, Split]:
    """Model -> split. Raises InvalidRequest."""
    splits: dict[str, Split] = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([^=:]+)=([^=:]+):([0-9.]+)", part.strip())
        try:
            share = float(match[3]) if match else -1.0
        except ValueError:
            share = -1.0
        if match is None or not 0 <= share <= 1:
            raise InvalidRequest(
                f"{setting} must be MODEL=VERSION:SHARE with an alias or a number and a share of 0 "
                f"to 1, several separated by commas; got {part!r}"
            )
        if match[1] in splits:
            raise InvalidRequest(f"{setting} names {match[1]} twice: a model has one {setting}")
        splits[match[1]] = Split(reference=match[2], share=share)
    if text and not splits:
        raise InvalidRequest(f"{setting} must be MODEL=VERSION:SHARE, or empty; got {text!r}")
    return splits


def falls_in(share: float, model: str, key: str) -> bool:
    """Whether a call is of the share: by its key, the same on every server; without one by chance.

    A key that is of a share is of every larger one too: raising it moves callers one way only.
    """
    if not key:
        return random.random() < share
    digest = hashlib.blake2b(f"{model}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
