"""Chooses and loads the versions of a model to serve, and says what is refused and why."""

import json
import logging
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace

from serving.engine import Engine
from serving.errors import BrokenVersion, NotFound, PawprintError, Unavailable
from serving.layout import DEFAULT_ALIAS
from serving.modelspec import RobustnessSummary, read_strictly
from serving.repository import Repository
from serving.version_policy import VersionPolicy

log = logging.getLogger(__name__)

# Until a refused version is tried again, though its files are the same; the last one ever after.
# What stood against it may have passed: no descriptor was free, or no memory.
RETRY_WAITS_S = (5.0, 30.0, 120.0, 600.0, 3600.0)

Load = Callable[[str, int], Engine]  # name, version -> engine; raises BrokenVersion, NotFound


@dataclass(frozen=True, kw_only=True)
class LoadedVersion:
    engine: Engine
    robustness: RobustnessSummary | None
    stamp: Hashable  # see Repository.stamp
    digest: str  # of its manifest


@dataclass(frozen=True, kw_only=True)
class Refusal:
    reason: str
    stamp: Hashable
    attempts: int = field(default=1, compare=False)  # with this stamp
    retry_at: float = field(compare=False)  # on the monotonic clock


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    versions: dict[int, LoadedVersion] = field(default_factory=dict)  # ascending
    # Those whose engine is being made anew, with the digest of what was loaded.
    restarting: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)  # to versions that are here
    default_version: int = 0  # 0: there is none
    refused: dict[int, Refusal] = field(default_factory=dict)
    alias_problem: str = ""
    kept: bool = False  # nothing that is wanted can be served: these versions are those of before


@dataclass(frozen=True, kw_only=True)
class Wanted:
    policy: VersionPolicy
    also: frozenset[int] = frozenset()  # whatever the policy says
    never: frozenset[int] = frozenset()  # to be loaded from the repository


def load_version(repository: Repository, name: str, version: int, load: Load) -> LoadedVersion:
    """Raises BrokenVersion, NotFound, Unavailable."""
    repository.check_version(name, version)
    # Before it is loaded: another that comes meanwhile must not pass for it.
    stamp, digest = repository.stamp(name, version), repository.manifest_digest(name, version)
    return LoadedVersion(
        engine=load(name, version),
        robustness=read_robustness(repository, name, version),
        stamp=stamp,
        digest=digest,
    )


def update_model(
    repository: Repository, name: str, load: Load, wanted: Wanted, before: LoadedModel
) -> LoadedModel:
    """What is to be served now, given what was served before. What is refused is logged once.

    What is loaded is not loaded again, and stays if its files are altered or gone, or if nothing
    that is wanted can be served: it goes only when others take its place. A refused version,
    whatever was raised, is tried again once its files have changed, and after RETRY_WAITS_S.
    Raises Unavailable or OSError where the repository can't be read.
    """
    present = repository.versions(name)
    versions: dict[int, LoadedVersion] = {}
    refused: dict[int, Refusal] = {}
    restarting: dict[int, str] = {}

    def attempt(version: int) -> bool:
        if version in versions or version in restarting:
            return True
        if version in wanted.never and version in before.versions:
            versions[version] = before.versions[version]  # another, that had taken its number
            return True
        if version in wanted.never or version in refused:
            return False
        if version in before.restarting and version in present:
            restarting[version] = before.restarting[version]
            return True
        if version in before.versions:
            loaded = before.versions[version]
            versions[version] = _refreshed(repository, name, version, loaded, load)
            return True
        if version not in present:
            return False
        stamp = repository.stamp(name, version)
        earlier = before.refused.get(version)
        if earlier is not None and earlier.stamp != stamp:
            earlier = None
        if earlier is not None and time.monotonic() < earlier.retry_at:
            refused[version] = earlier
            return False
        outcome = _load_or_refuse(repository, name, version, load, stamp, earlier)
        if isinstance(outcome, Refusal):
            refused[version] = outcome
        else:
            versions[version] = outcome
        return version in versions

    sound = 0
    for version in sorted({*present, *before.versions, *before.restarting}, reverse=True):
        if sound < wanted.policy.newest:
            # One that the operator unloaded keeps its place: no older one takes it unasked.
            sound += attempt(version) or version in wanted.never
        if version in wanted.policy.numbers or version in wanted.also:
            attempt(version)
    named, alias_problem = _aliases(repository, name, present, before)
    aliases = {}
    for alias, version in named.items():
        earlier_version = before.aliases.get(alias, 0)
        if attempt(version):
            aliases[alias] = version
        elif attempt(earlier_version):
            aliases[alias] = earlier_version
        if version in refused and refused[version] != before.refused.get(version):
            kept = f"it stays with {earlier_version}" if alias in aliases else "it is not served"
            log.error("alias %r of %s: its version is refused, and %s", alias, name, kept)
    barred = [f"{a} ({v})" for a, v in named.items() if v in wanted.never and v in present]
    if barred:
        unloaded = f"name versions that the operator unloaded: {', '.join(barred)}"
        alias_problem = "; ".join(filter(None, (alias_problem, unloaded)))
    if alias_problem and alias_problem != before.alias_problem:
        log.error("the aliases of %s %s", name, alias_problem)
    unasked = False
    if not versions and not restarting:
        unasked = any([attempt(version) for version in (*before.versions, *before.restarting)])
        aliases = {alias: v for alias, v in before.aliases.items() if v in {*versions, *restarting}}
        if unasked and not before.kept:
            log.error("%s: no version that is asked for can be served; those of before stay", name)
    default = _default(versions, restarting, aliases)
    if DEFAULT_ALIAS in named.keys() - aliases.keys() and default != before.default_version:
        log.warning("%s: calls that name no version are answered by %d", name, default)
    return LoadedModel(
        versions=dict(sorted(versions.items())),
        restarting=restarting,
        aliases=aliases,
        default_version=default,
        refused=refused,
        alias_problem=alias_problem,
        kept=unasked,
    )


def with_version(
    repository: Repository, name: str, version: int, load: Load, before: LoadedModel
) -> LoadedModel:
    """`before` and one version more, or why it is refused, and the aliases that name it: all else
    stays, whatever the repository has.

    Raises Unavailable or OSError where the repository can't be read.
    """
    versions, refused = dict(before.versions), dict(before.refused)
    if version in versions:
        versions[version] = _refreshed(repository, name, version, versions[version], load)
    elif version not in before.restarting:
        stamp = repository.stamp(name, version)
        outcome = _load_or_refuse(repository, name, version, load, stamp, None)
        if isinstance(outcome, Refusal):
            return replace(before, refused=refused | {version: outcome})
        versions[version] = outcome
        refused.pop(version, None)
    named, _ = _aliases(repository, name, [version], before)
    aliases = before.aliases | {alias: v for alias, v in named.items() if v == version}
    return replace(
        before,
        versions=dict(sorted(versions.items())),
        aliases=dict(sorted(aliases.items())),
        default_version=_default(versions, before.restarting, aliases),
        refused=refused,
    )


def without_versions(gone: Collection[int], name: str, before: LoadedModel) -> LoadedModel:
    """`before`, and all of it that stays."""
    versions = {v: loaded for v, loaded in before.versions.items() if v not in gone}
    restarting = {v: digest for v, digest in before.restarting.items() if v not in gone}
    aliases = {alias: v for alias, v in before.aliases.items() if v not in gone}
    default = _default(versions, restarting, aliases)
    if DEFAULT_ALIAS in before.aliases.keys() - aliases.keys():
        log.warning("%s: calls that name no version are answered by %s", name, default or "none")
    return replace(
        before, versions=versions, restarting=restarting, aliases=aliases, default_version=default
    )


def _default(
    versions: Collection[int], restarting: Collection[int], aliases: Mapping[str, int]
) -> int:
    return aliases.get(DEFAULT_ALIAS, max({*versions, *restarting}, default=0))


def _load_or_refuse(
    repository: Repository,
    name: str,
    version: int,
    load: Load,
    stamp: Hashable,
    earlier: Refusal | None,
) -> LoadedVersion | Refusal:
    """stamp: of the files before they are loaded. earlier: see _refusal. Raises Unavailable."""
    try:
        return load_version(repository, name, version, load)
    except Unavailable:
        raise
    except Exception as error:  # what a damaged file or a full memory brings, nobody can say
        return _refusal(name, version, error, stamp, earlier)


def _refusal(
    name: str, version: int, error: Exception, stamp: Hashable, earlier: Refusal | None
) -> Refusal:
    """earlier: of the same files. Logged, unless that gave the same reason."""
    expected = isinstance(error, (PawprintError, OSError))  # such as descriptors that ran out
    told = isinstance(error, PawprintError)
    reason = str(error) if told else f"{name}/{version} can't be loaded: {error!r}"
    if earlier is None or earlier.reason != reason:
        log.error("not served: %s", reason, exc_info=None if expected else error)
    attempts = earlier.attempts + 1 if earlier else 1
    wait_s = RETRY_WAITS_S[min(attempts, len(RETRY_WAITS_S)) - 1]
    return Refusal(
        reason=reason, stamp=stamp, attempts=attempts, retry_at=time.monotonic() + wait_s
    )


def read_robustness(repository: Repository, name: str, version: int) -> RobustnessSummary | None:
    """The summary of a version's analysis; None if there is none, or none that can be read."""
    try:
        data = repository.read_analysis(name, version, "summary.json")
        if data is None:
            return None
        return read_strictly(RobustnessSummary, json.loads(data), "summary.json")
    except (BrokenVersion, ValueError) as error:
        log.warning("%s/%d is served without its robustness summary: %s", name, version, error)
        return None


def _refreshed(
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
        log.error("%s/%d stays as it was loaded: %s", name, version, error)
        broken = isinstance(error, BrokenVersion)  # all else may pass: it is tried again
        return replace(loaded, stamp=stamp) if broken else loaded
    try:
        robustness = read_robustness(repository, name, version)
    except NotFound:
        robustness = None
    return replace(loaded, robustness=robustness or loaded.robustness, stamp=stamp)


def _aliases(
    repository: Repository, name: str, present: list[int], before: LoadedModel
) -> tuple[dict[str, int], str]:
    """Those of the repository, and those whose version is no longer there but still loaded; and
    what is the matter with them. One that names a version which is not there stays as it was, and
    so do all if they can't be read.
    """
    try:
        named = repository.named(name)
    except BrokenVersion as error:
        return before.aliases, f"can't be read: {error}"
    if not set(named.values()) <= set(present):  # one may have come while others were loaded
        present = repository.versions(name)
    left = {a: version for a, version in before.aliases.items() if version not in present}
    found = {a: version for a, version in named.items() if version in present}
    lost = {a: version for a, version in named.items() if a not in left | found}
    stay = {a: before.aliases[a] for a in lost if a in before.aliases}
    shown = ", ".join(f"{a} ({version})" for a, version in lost.items())
    problem = f"name versions that are not there: {shown}" if lost else ""
    return dict(sorted((left | stay | found).items())), problem
