"""Loads one version of a model, or says why it is refused."""

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from serving.engine import Engine
from serving.errors import BrokenVersion, NotFound, PawprintError, Unavailable, sendable
from serving.modelspec import Findings
from serving.repository import Repository

log = logging.getLogger(__name__)

# Until a refused version is tried again, though its files are the same; the last one ever after.
# What stood against it may have passed: no descriptor was free, or no memory.
RETRY_WAITS_S = (5.0, 30.0, 120.0, 600.0, 3600.0)

Load = Callable[[str, int], Engine]  # name, version -> engine; raises BrokenVersion, NotFound


@dataclass(frozen=True, kw_only=True)
class LoadedVersion:
    engine: Engine
    findings: Findings | None
    stamp: Hashable  # see Repository.stamp
    digest: str  # of its manifest


@dataclass(frozen=True, kw_only=True)
class Refusal:
    reason: str
    stamp: Hashable
    attempts: int = field(default=1, compare=False)  # with this stamp
    retry_at: float = field(compare=False)  # on the monotonic clock


def load_version(repository: Repository, name: str, version: int, load: Load) -> LoadedVersion:
    """Raises BrokenVersion, NotFound, Unavailable."""
    repository.check_version(name, version)
    # Before it is loaded: another that comes meanwhile must not pass for it.
    stamp, digest = repository.stamp(name, version), repository.manifest_digest(name, version)
    return LoadedVersion(
        engine=load(name, version),
        findings=read_findings(repository, name, version),
        stamp=stamp,
        digest=digest,
    )


def load_or_refuse(
    repository: Repository, name: str, version: int, load: Load, earlier: Refusal | None
) -> LoadedVersion | Refusal:
    """earlier: of the version; it stays for as long as its files do and its time has not come.

    Raises Unavailable or OSError where the repository can't be read.
    """
    stamp = repository.stamp(name, version)
    if earlier is not None and earlier.stamp != stamp:
        earlier = None
    if earlier is not None and time.monotonic() < earlier.retry_at:
        return earlier
    try:
        return load_version(repository, name, version, load)
    except Unavailable:
        raise
    except Exception as error:  # what a damaged file or a full memory brings, nobody can say
        return _refusal(name, version, error, stamp, earlier)


def reason_of(error: Exception) -> str:
    """What nobody expects says what it is, too: a MemoryError has no words of its own."""
    return str(error) if isinstance(error, (PawprintError, OSError)) else repr(error)


def _refusal(
    name: str, version: int, error: Exception, stamp: Hashable, earlier: Refusal | None
) -> Refusal:
    """earlier: of the same files. Logged, unless that gave the same reason."""
    expected = isinstance(error, (PawprintError, OSError))  # such as descriptors that ran out
    told = isinstance(error, PawprintError)
    reason = sendable(str(error) if told else f"{name}/{version} can't be loaded: {error!r}")
    if earlier is None or earlier.reason != reason:
        log.error("not served: %s", reason, exc_info=None if expected else error)
    attempts = earlier.attempts + 1 if earlier else 1
    wait_s = RETRY_WAITS_S[min(attempts, len(RETRY_WAITS_S)) - 1]
    return Refusal(
        reason=reason, stamp=stamp, attempts=attempts, retry_at=time.monotonic() + wait_s
    )


def read_findings(repository: Repository, name: str, version: int) -> Findings | None:
    """What a version's analysis found; None if there is none, or none that can be read."""
    try:
        return repository.findings(name, version)
    except BrokenVersion as error:
        log.warning("%s/%d is served without the figures of its analysis: %s", name, version, error)
        return None


def refreshed(
    repository: Repository, name: str, version: int, loaded: LoadedVersion, load: Load
) -> LoadedVersion:
    """With the analysis that has come since it was loaded; or another version, whole, that has
    taken its number."""
    stamp = repository.stamp(name, version)
    if stamp in (loaded.stamp, ()):  # the same, or gone
        return loaded
    try:
        if repository.manifest_digest(name, version) != loaded.digest:
            log.warning("%s/%d is another one than before: it is loaded anew", name, version)
            return load_version(repository, name, version, load)
    except Unavailable:
        raise
    except Exception as error:  # what a damaged file or a full memory brings, nobody can say
        log.error("%s/%d stays as it was loaded: %s", name, version, reason_of(error))
        broken = isinstance(error, BrokenVersion)  # all else may pass: it is tried again
        return replace(loaded, stamp=stamp) if broken else loaded
    try:
        findings = read_findings(repository, name, version)
    except NotFound:
        findings = None
    return replace(loaded, findings=findings or loaded.findings, stamp=stamp)
