"""Chooses and loads the versions to serve: of each model the newest sound one and the aliased."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from serving.engine import Engine
from serving.errors import BrokenVersion, NotFound
from serving.modelspec import RobustnessSummary, read_strictly
from serving.repository import DEFAULT_ALIAS, Repository

log = logging.getLogger(__name__)

Load = Callable[[str, int], Engine]  # name, version -> engine; raises BrokenVersion, NotFound


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    engines: dict[int, Engine]  # ascending by version
    aliases: dict[str, int]  # those whose version is loaded
    default_version: int


def load_model(repository: Repository, name: str, load: Load) -> LoadedModel | None:
    """None if no version of the model can be served. What is refused is logged, with the reason."""
    engines: dict[int, Engine] = {}
    tried: set[int] = set()

    def attempt(version: int) -> bool:
        if version not in tried:
            tried.add(version)
            try:
                engines[version] = load(name, version)
            except (BrokenVersion, NotFound) as error:
                log.error("not served: %s", error)
        return version in engines

    aliases = _aliases(repository, name)
    for version in reversed(repository.versions(name)):
        if attempt(version):
            break
    served_aliases = {alias: version for alias, version in aliases.items() if attempt(version)}
    if not engines:
        return None
    newest = max(engines)
    for alias in aliases.keys() - served_aliases.keys():
        log.error("alias %r of %s is not served, for its version is refused", alias, name)
    if DEFAULT_ALIAS in aliases and DEFAULT_ALIAS not in served_aliases:
        log.warning("%s: calls that name no version are answered by %d", name, newest)
    return LoadedModel(
        engines=dict(sorted(engines.items())),
        aliases=served_aliases,
        default_version=served_aliases.get(DEFAULT_ALIAS, newest),
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


def _aliases(repository: Repository, name: str) -> dict[str, int]:
    try:
        return repository.aliases(name)
    except BrokenVersion as error:
        log.error("the aliases of %s are not served: %s", name, error)
        return {}
