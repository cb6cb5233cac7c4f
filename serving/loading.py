"""Chooses the versions of a model to serve: as policy, aliases and operator have it."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from serving.errors import BrokenVersion
from serving.layout import DEFAULT_ALIAS
from serving.loaded_version import Load, LoadedVersion, Refusal, load_or_refuse, refreshed
from serving.repository import Repository
from serving.version_policy import VersionPolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    versions: dict[int, LoadedVersion] = field(default_factory=dict)  # ascending
    # Those whose engine is being made anew, with the digest of what was loaded.
    restarting: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)  # to versions that are here
    refused: dict[int, Refusal] = field(default_factory=dict)
    unfollowed: dict[str, int] = field(default_factory=dict)  # alias -> a refused version
    alias_problem: str = ""
    kept: bool = False  # nothing that is wanted can be served: these versions are those of before

    @property
    def served(self) -> set[int]:
        return {*self.versions, *self.restarting}

    @property
    def default_version(self) -> int:
        """0: there is none."""
        return self.aliases.get(DEFAULT_ALIAS, max(self.served, default=0))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    policy: VersionPolicy
    also: frozenset[int] = frozenset()  # whatever the policy says
    never: frozenset[int] = frozenset()  # to be loaded from the repository


def update_model(
    repository: Repository, name: str, load: Load, wanted: Wanted, before: LoadedModel
) -> LoadedModel:
    """What is to be served now, given what was served before. What is refused is logged once.

    What is loaded is not loaded again, and stays if its files are altered or gone, or if nothing
    that is wanted can be served: it goes only when others take its place. A refused version,
    whatever was raised, is tried again once its files have changed, and from time to time.
    Raises Unavailable or OSError where the repository can't be read.
    """
    look = _Look(repository, name, load, wanted, before)
    look.try_wanted()
    named, alias_problem = _aliases(repository, name, look.present, before)
    aliases = look.try_named(named)
    barred = [f"{a} ({v})" for a, v in named.items() if v in wanted.never and v in look.present]
    if barred:
        unloaded = f"name versions that the operator unloaded: {', '.join(barred)}"
        alias_problem = "; ".join(filter(None, (alias_problem, unloaded)))
    if alias_problem and alias_problem != before.alias_problem:
        log.error("the aliases of %s %s", name, alias_problem)
    kept = not look.served and look.try_those_of_before()
    if kept:
        aliases = {alias: v for alias, v in before.aliases.items() if v in look.served}
    after = LoadedModel(
        versions=dict(sorted(look.versions.items())),
        restarting=look.restarting,
        aliases=aliases,
        refused=look.refused,
        unfollowed={alias: v for alias, v in named.items() if v in look.refused},
        alias_problem=alias_problem,
        kept=kept,
    )
    default = after.default_version
    if DEFAULT_ALIAS in named.keys() - aliases.keys() and default != before.default_version:
        log.warning("%s: calls that name no version are answered by %d", name, default)
    return after


class _Look:
    """A look at a model in which versions are tried, for whoever asks for them: each once."""

    def __init__(
        self, repository: Repository, name: str, load: Load, wanted: Wanted, before: LoadedModel
    ) -> None:
        self._repository, self._name, self._load = repository, name, load
        self._wanted, self._before = wanted, before
        self.present = repository.versions(name)
        self.versions: dict[int, LoadedVersion] = {}
        self.restarting: dict[int, str] = {}
        self.refused: dict[int, Refusal] = {}

    @property
    def served(self) -> set[int]:
        return {*self.versions, *self.restarting}

    def try_wanted(self) -> None:
        sound, policy, before = 0, self._wanted.policy, self._before
        for version in sorted({*self.present, *before.served}, reverse=True):
            if sound < policy.newest:
                # One that the operator unloaded keeps its place: no older one takes it unasked.
                sound += self._try(version) or version in self._wanted.never
            if version in policy.numbers or version in self._wanted.also:
                self._try(version)

    def try_named(self, named: Mapping[str, int]) -> dict[str, int]:
        """The aliases that name a version which is served: this one, or the one of before."""
        aliases = {}
        for alias, version in named.items():
            earlier = self._before.aliases.get(alias, 0)
            if self._try(version):
                aliases[alias] = version
            elif self._try(earlier):
                aliases[alias] = earlier
            refusal, before = self.refused.get(version), self._before
            as_before = before.unfollowed.get(alias), before.refused.get(version)
            if refusal is not None and as_before != (version, refusal):
                kept = f"it stays with {earlier}" if alias in aliases else "it is not served"
                log.error("alias %r of %s: its version is refused, and %s", alias, self._name, kept)
        return aliases

    def try_those_of_before(self) -> bool:
        """Whether there are any that can stay."""
        before = self._before
        kept = any([self._try(version) for version in before.served])
        if kept and not before.kept:
            text = "%s: no version that is asked for can be served; those of before stay"
            log.error(text, self._name)
        return kept

    def _try(self, version: int) -> bool:
        """Whether it is served."""
        name, before = self._name, self._before
        if version in self.served:
            return True
        if version in self._wanted.never and version in before.versions:
            self.versions[version] = before.versions[version]  # another, that had taken its number
            return True
        if version in self._wanted.never or version in self.refused:
            return False
        if version in before.restarting and version in self.present:
            self.restarting[version] = before.restarting[version]
            return True
        if version in before.versions:
            loaded = before.versions[version]
            self.versions[version] = refreshed(self._repository, name, version, loaded, self._load)
            return True
        if version not in self.present:
            return False
        earlier = before.refused.get(version)
        outcome = load_or_refuse(self._repository, name, version, self._load, earlier)
        if isinstance(outcome, Refusal):
            self.refused[version] = outcome
            return False
        self.versions[version] = outcome
        return True


def with_version(
    repository: Repository, name: str, version: int, load: Load, before: LoadedModel
) -> LoadedModel:
    """`before` and one version more, or why it is refused, and the aliases that name it: all else
    stays, whatever the repository has.

    Raises Unavailable or OSError where the repository can't be read.
    """
    versions, refused = dict(before.versions), dict(before.refused)
    if version in versions:
        versions[version] = refreshed(repository, name, version, versions[version], load)
    elif version not in before.restarting:
        outcome = load_or_refuse(repository, name, version, load, None)
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
        refused=refused,
    )


def without_versions(gone: Collection[int], name: str, before: LoadedModel) -> LoadedModel:
    """`before`, and all of it that stays."""
    after = replace(
        before,
        versions={v: loaded for v, loaded in before.versions.items() if v not in gone},
        restarting={v: digest for v, digest in before.restarting.items() if v not in gone},
        aliases={alias: v for alias, v in before.aliases.items() if v not in gone},
    )
    if DEFAULT_ALIAS in before.aliases.keys() - after.aliases.keys():
        default = after.default_version or "none"
        log.warning("%s: calls that name no version are answered by %s", name, default)
    return after


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
