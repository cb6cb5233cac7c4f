"""What is being served: models, their loaded versions, and which of them a reference names."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.batching import Batcher
from serving.engine import Engine
from serving.errors import NotFound, Unavailable, listed
from serving.layout import version_number
from serving.modelspec import Findings
from serving.splits import falls_in


@dataclass(frozen=True, kw_only=True)
class ServedVersion:
    engine: Engine
    batcher: Batcher
    findings: Findings | None  # None until `analyze` has measured it
    shadow: "Shadow | None" = None


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A version that gets copies of another one's calls, whose answers are only counted."""

    served: ServedVersion
    share: float  # of the calls, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A version that answers a share of the calls that name none."""

    version: int
    share: float  # 0 to 1


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    name: str
    versions: Mapping[int, ServedVersion]  # ascending
    default_version: int
    aliases: Mapping[str, int]  # those whose version is loaded or restarting
    restarting: frozenset[int] = frozenset()  # versions whose engine is being made anew
    canary: Canary | None = None


class Catalogue:
    """Never changed: a reload makes another one."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.models = models  # sorted by name

    @property
    def can_answer(self) -> bool:
        """Whether any version of any model is there."""
        return any(model.versions for model in self.models.values())

    def find(self, name: str, reference: str, routing_key: str | None = None) -> ServedVersion:
        """The version that a number, an alias or "" (the default) names.

        routing_key: of a call that is to be answered by a canary where its turn comes; calls
        without a reference that have the same key get the same version, those with "" one by
        chance. None: the default, for what only describes it.
        Raises NotFound; Unavailable for a version whose engine is being made anew.
        """
        model = self.models.get(name)
        if model is None:
            raise NotFound(f"no model {name[:64]!r} is served; models here: {listed(self.models)}")
        version = _choose(model, reference, routing_key)
        served = model.versions.get(version)
        if served is not None:
            return served
        if version in model.restarting:
            raise Unavailable(
                f"version {version} of model {name!r} is restarting; try again shortly"
            )
        raise NotFound(
            f"model {name!r} has no version or alias {reference[:64]!r} here; "
            f"versions: {listed(model.versions)}; aliases: {listed(model.aliases)}"
        )


def _choose(model: ServedModel, reference: str, routing_key: str | None) -> int:
    """A version number, not always one that is there."""
    if reference == "":
        canary = model.canary
        if canary and routing_key is not None:
            if falls_in(canary.share, model.name, routing_key):
                return canary.version
        return model.default_version
    if reference in model.aliases:
        return model.aliases[reference]
    return version_number(reference)
