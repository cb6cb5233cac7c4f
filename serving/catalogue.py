"""What is being served: models, their loaded versions, and which of them a reference names."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.batching import Batcher
from serving.engine import Engine
from serving.errors import NotFound
from serving.modelspec import RobustnessSummary


@dataclass(frozen=True, kw_only=True)
class ServedVersion:
    engine: Engine
    batcher: Batcher
    robustness: RobustnessSummary | None  # None until `analyze` has measured it


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    name: str
    versions: Mapping[int, ServedVersion]  # ascending
    default_version: int
    aliases: Mapping[str, int]  # those whose version is loaded


class Catalogue:
    """Never changed: a reload makes another one."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.models = models  # sorted by name

    def find(self, name: str, reference: str) -> ServedVersion:
        """The version that a number, an alias or "" (the default) names. Raises NotFound."""
        model = self.models.get(name)
        if model is None:
            raise NotFound(f"no model {name[:64]!r} is served; models here: {_list(self.models)}")
        if reference == "":
            return model.versions[model.default_version]
        if reference in model.aliases:
            return model.versions[model.aliases[reference]]
        if reference.isascii() and reference.isdigit() and len(reference) < 10:
            version = model.versions.get(int(reference))
            if version is not None:
                return version
        raise NotFound(
            f"model {name!r} has no version or alias {reference[:64]!r} here; "
            f"versions: {_list(model.versions)}; aliases: {_list(model.aliases)}"
        )


def _list(names: Mapping[str, object] | Mapping[int, object]) -> str:
    return ", ".join(map(str, names)) or "none"
