"""Who may call: bearer tokens, of which the server knows only the digests.

`python -m serving.tokens NAME` makes one: the token on stdout, its entry for the file on stderr.

[[tokens]]
name = "shop"                 # stands in the access log
sha256 = "9f86d0..."          # hex, of the token
photos_per_s = 50.0           # 0 or left out: no limit
burst = 200                   # photos after a rest; left out: ten seconds' worth
"""

import argparse
import hashlib
import hmac
import json
import logging
import re
import secrets
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.commandline import Parser
from serving.errors import InvalidRequest, Overloaded, Unauthenticated
from serving.modelspec import read_strictly
from serving.rate_limit import Bucket
from serving.whole_file import stamp_of

log = logging.getLogger(__name__)

_CHECK_EVERY_S = 1.0
_BURST_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Token:
    name: str
    sha256: str  # hex
    photos_per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name must be 1 to 64 letters, digits, '.', '_', '-': {self.name!r}")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 of {self.name} must be 64 lower-case hex digits")
        if self.photos_per_s < 0 or (self.photos_per_s and not self.burst > 0):
            raise ValueError(f"photos_per_s and burst of {self.name} must be more than 0")


class Tokens:
    """The tokens of a file, read again when it changes. Belongs to the event loop."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequest if the file can't be used."""
        self._path = path
        self._seen = stamp_of(path)
        self._tokens = read_tokens(path)
        self._checked = time.monotonic()
        self._said = ""  # why the file can't be used now
        self._buckets: dict[str, Bucket] = {}  # by the name of the token

    def identify(self, authorization: str) -> Token:
        """authorization: the header, "Bearer TOKEN". Raises Unauthenticated."""
        self._refresh()
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("this server wants a token: authorization: Bearer TOKEN")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        found = None
        for known in self._tokens:  # all of them, so that the time says nothing
            if hmac.compare_digest(known.sha256, digest):
                found = known
        if found is None:
            raise Unauthenticated("the token is not one that this server knows")
        return found

    def check(self, token: Token) -> None:
        """That a token identified earlier is still known: a stream may be older than the file.
        Raises Unauthenticated."""
        self._refresh()
        if all(known.sha256 != token.sha256 for known in self._tokens):
            raise Unauthenticated(f"the token {token.name!r} is no longer one that is known here")

    def charge(self, token: Token, photos: int) -> None:
        """Count photos against a token's rate. Raises Overloaded, with the time to wait."""
        # A stream may be older than the file, and what is owed outlasts a change of it.
        self._refresh()
        token = next((known for known in self._tokens if known.name == token.name), token)
        if not token.photos_per_s:
            return
        now = time.monotonic()
        bucket = self._buckets.get(token.name)
        if bucket is None:
            bucket = Bucket(token.photos_per_s, token.burst, token.burst, now)
            self._buckets[token.name] = bucket
        bucket.rate, bucket.burst = token.photos_per_s, token.burst
        wait_s = bucket.take(photos, now)
        if wait_s:
            raise Overloaded(
                f"the token {token.name!r} has had its {token.photos_per_s:g} photos a second; "
                f"try again in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_EVERY_S:
            return
        self._checked = now
        stamp = stamp_of(self._path)
        if stamp == self._seen:
            return
        try:
            self._tokens = read_tokens(self._path)
        except InvalidRequest as error:  # tried again: no descriptor may have been free
            if str(error) != self._said:
                self._said = str(error)
                log.error("the tokens stay as they were: %s", error)
            return
        self._seen, self._said = stamp, ""
        log.info("%d tokens read again", len(self._tokens))


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Raises InvalidRequest."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        entries = value.pop("tokens", [])
        if value or not isinstance(entries, list) or not entries:
            raise ValueError("it must hold [[tokens]] entries, and nothing else")
        tokens = tuple(_token(entry, f"tokens[{index}]") for index, entry in enumerate(entries))
        for what, found in (
            ("name", [t.name for t in tokens]),
            ("sha256", [t.sha256 for t in tokens]),
        ):
            if len(set(found)) < len(found):
                raise ValueError(f"two entries have the same {what}")
    # A number of 400 digits, and a list of lists of lists ...: a running server reads them too.
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the tokens in {path} can't be used: {error}") from error
    return tokens


def _token(entry: object, where: str) -> Token:
    if isinstance(entry, dict):
        rate = entry.get("photos_per_s", 0.0)
        burst = _BURST_S * rate if isinstance(rate, int | float) else 0.0
        entry = {"photos_per_s": 0.0, "burst": burst} | entry
    return read_strictly(Token, entry, where)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m serving.tokens",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="whose token it is")
    parser.add_argument(
        "--photos-per-s",
        type=float,
        default=0.0,
        help="rate of the token; 0: no limit (the default)",
    )
    options = parser.parse_args(arguments)
    token = secrets.token_urlsafe(32)
    try:
        made = Token(
            name=options.name,
            sha256=hashlib.sha256(token.encode()).hexdigest(),
            photos_per_s=options.photos_per_s,
            burst=_BURST_S * options.photos_per_s,
        )
    except ValueError as error:
        parser.error(str(error))
    print(token)
    rate = f"photos_per_s = {made.photos_per_s}\n" if made.photos_per_s else ""
    print(
        f"[[tokens]]\nname = {json.dumps(made.name)}\nsha256 = {json.dumps(made.sha256)}\n{rate}",
        file=sys.stderr,
        end="",
    )


if __name__ == "__main__":
    main()
