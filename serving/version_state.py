"""What has become of each version that was tried, for operators and metrics."""

from dataclasses import dataclass

from serving.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class VersionState:
    model: str
    version: int
    state: str  # "serving", "refused" or "restarting"
    reason: str  # why it is refused
    aliases: tuple[str, ...]
    default: bool
    device: str  # "" unless it is serving
    precision: str


def states_of(name: str, model: LoadedModel) -> list[VersionState]:
    """By version."""
    found = []
    for version in sorted(model.served | model.refused.keys()):
        loaded, refusal = model.versions.get(version), model.refused.get(version)
        found.append(
            VersionState(
                model=name,
                version=version,
                state="refused" if refusal else "serving" if loaded else "restarting",
                reason=refusal.reason if refusal else "",
                aliases=tuple(alias for alias, v in model.aliases.items() if v == version),
                default=version == model.default_version,
                device=loaded.engine.device if loaded else "",
                precision=loaded.engine.precision if loaded else "",
            )
        )
    return found
