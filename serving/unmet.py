"""What the settings ask for and is not there, or has no effect: said by `serve --check`, and logged
at run time."""

from collections.abc import Iterator, Mapping

from serving.control_settings import ControlSettings
from serving.errors import listed
from serving.loading import LoadedModel
from serving.splits import Split, read_splits
from serving.version_policy import read_policy
from serving.wiring import version_of


def unmet(models: Mapping[str, LoadedModel], settings: ControlSettings) -> list[str]:
    """One sentence each. A version that is refused is there: its own state says why."""
    return [*_versions(models, settings), *_splits(models, settings)]


def without_effect(models: Mapping[str, LoadedModel], settings: ControlSettings) -> list[str]:
    """One sentence for each canary and shadow that is the version which calls get in any case, as
    after a promotion: nothing is missing, but neither is anything tried."""
    canaries = read_splits(settings.canary, "canary")
    said, tried = [], set()
    for name, split in canaries.items():
        if split.share and (model := models.get(name)):
            if _is_default(split, model):
                said.append(f"canary of {name}: {split.reference} is what all calls get already")
            else:
                tried.add(name)
    for name, split in read_splits(settings.shadow, "shadow").items():
        # The calls of a canary are copied to it all the same.
        if split.share and name not in tried and (model := models.get(name)):
            if _is_default(split, model):
                said.append(
                    f"shadow of {name}: {split.reference} answers the calls itself, and gets no "
                    "copies of them"
                )
    return said


def other_labels(models: Mapping[str, LoadedModel], settings: ControlSettings) -> list[str]:
    """One sentence for each canary and shadow whose labels are not those of the version that other
    calls get, as after a class was renamed: its answers differ, however right they are."""
    said = []
    for kind, text in (("canary", settings.canary), ("shadow", settings.shadow)):
        for name, split in read_splits(text, kind).items():
            if not split.share or (model := models.get(name)) is None:
                continue
            tried, usual = version_of(split, model), model.default_version
            if tried in model.versions and usual in model.versions:
                new, old = (set(model.versions[v].engine.manifest.labels) for v in (tried, usual))
                if new != old:
                    said.append(
                        f"{kind} of {name}: {split.reference} has other labels than {usual}, which "
                        f"calls get: without {listed(sorted(old - new))}; "
                        f"with {listed(sorted(new - old))}"
                    )
    return said


def _is_default(split: Split, model: LoadedModel) -> bool:
    return version_of(split, model) == model.default_version != 0


def _versions(models: Mapping[str, LoadedModel], settings: ControlSettings) -> Iterator[str]:
    """Not each number has to be there of each model: the setting is one for all."""
    numbers = read_policy(settings.versions).numbers
    there = {n: m.served | m.refused.keys() for n, m in models.items()}
    for number in sorted(numbers.difference(*there.values())):
        yield f"versions asks for {number}, which no model has"
    for name in sorted(there):
        if numbers and numbers.isdisjoint(there[name]):
            yield f"versions is {settings.versions}, and {name} has none of these"


def _splits(models: Mapping[str, LoadedModel], settings: ControlSettings) -> Iterator[str]:
    for kind, text in (("canary", settings.canary), ("shadow", settings.shadow)):
        for name, split in read_splits(text, kind).items():
            model = models.get(name)
            if model is None:
                yield f"{kind} of {name}: no model of this name is served"
            elif version_of(split, model) not in model.served:
                yield f"{kind} of {name}: no version or alias {split.reference} of it is served"
