"""The exceptions of the core. They know nothing of gRPC or of exit codes.

    PawprintError                something a user or a caller can put right; the message says how
    ├── InvalidRequest           the call itself is wrong (no photos, top_k out of range, ...)
    ├── InvalidImage             one photo can't be read; its neighbours are unharmed
    ├── NotFound                 no such model, version or alias
    ├── BrokenVersion            a version that must not be served: missing, altered or malformed
    ├── Overloaded               the queue is full; try again later
    ├── DeadlineExceeded         the answer would come too late
    ├── Unavailable              the server, or the device asked for, is not there
    └── Unauthenticated          the server wants a token, and this is none that it knows

Everything else that is raised is a defect of ours.
"""

import sys
from collections.abc import Collection
from itertools import islice


def listed(names: Collection[object], most: int = 20, between: str = ", ") -> str:
    """The first of `names`, for a message: "a, b and 3 more"; "none" where there are none."""
    shown = between.join(map(str, islice(names, most))) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def to_install(extra: str) -> str:
    """What to do where the packages of an extra are missing. It names no package `pawprint`: the
    one of that name on the public index is another project's."""
    return (
        f"install the extra {extra} of Pawprint from its folder or wheel: pip install '.[{extra}]'"
    )


def sendable(text: str) -> str:
    """With bytes of a file's name that are no text as a literal has them: no message can carry
    them."""
    return text.encode(errors="backslashreplace").decode()


def first_line(said: object) -> str:
    """Of an error's text, which may be pages long; its type where it says nothing."""
    return str(said).strip().partition("\n")[0] or type(said).__name__


def not_utf8(what: str, otherwise: str = "") -> str:
    """Of a text that holds bytes as Python keeps those that it can't read; otherwise: what else
    helps."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return f"{what} is not UTF-8" + (f": {otherwise}" if otherwise else "")
    return (
        f"{what} can't be read in this locale, whose encoding is {encoding}: set PYTHONUTF8=1"
        + (f", or {otherwise}" if otherwise else "")
    )


def in_utf8(what: str, text: str, otherwise: str = "") -> str:
    """The same text. Raises InvalidRequest for one that can't be sent or written down."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(not_utf8(f"{what} {text!r}", otherwise)) from error
    return text


def lacks(what: str, package: str, error: Exception, extra: str) -> str:
    """`what` needs a package of an extra that is missing, or whose import raised `error`."""
    missing = isinstance(error, ModuleNotFoundError) and error.name == package
    why = "" if missing else f", which can't be loaded ({first_line(error)})"
    return f"{what} needs the package {package}{why}; {to_install(extra)}"


class PawprintError(Exception):
    """Something a user or a caller can put right; str(error) says what to do."""


class InvalidRequest(PawprintError):
    """The call itself is wrong."""


class InvalidImage(PawprintError):
    """One photo can't be read."""


class NotFound(PawprintError):
    """No such model, version or alias."""


class BrokenVersion(PawprintError):
    """A version that must not be served: a file is missing, altered or malformed."""


class Overloaded(PawprintError):
    """The queue is full, or the caller has had its share."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s  # when another attempt has a chance, if that is known


class DeadlineExceeded(PawprintError):
    """The caller's deadline has passed, or would pass before the answer."""


class Unavailable(PawprintError):
    """The server can't be reached or is not ready, or the device asked for is not there."""


class Unauthenticated(PawprintError):
    """The server wants a token, and this is none that it knows."""
