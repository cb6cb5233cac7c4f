"""Which versions of a model are served: `latest:N`, `all`, `alias`, or numbers such as `1,2,5`.

Those that an alias names are served in any case.
"""

import re
import sys
from dataclasses import dataclass

from serving.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class VersionPolicy:
    newest: int  # so many of the newest sound ones
    numbers: frozenset[int]  # and these


def read_policy(text: str) -> VersionPolicy:
    """Raises InvalidRequest."""
    if text == "all":
        return VersionPolicy(newest=sys.maxsize, numbers=frozenset())
    if text == "alias":
        return VersionPolicy(newest=0, numbers=frozenset())
    if match := re.fullmatch(r"latest:([1-9][0-9]{0,8})", text):
        return VersionPolicy(newest=int(match[1]), numbers=frozenset())
    if re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", text):
        return VersionPolicy(newest=0, numbers=frozenset(map(int, text.split(","))))
    raise InvalidRequest(
        f"versions must be latest:N, all, alias, or numbers such as 1,2,5; got {text!r}"
    )
