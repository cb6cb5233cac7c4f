"""What the settings ask for and is not there, or has no effect: said by `serve --check`, and logged
at run time."""

from collections.abc import Iterator, Mapping

from serving.control_settings import ControlSettings
from serving.errors import listed
from serving.loading import LoadedModel
from serving.modelspec import Manifest, widths_of
from serving.splits import Split
from serving.wiring import version_of


def unmet(models: Mapping[str, LoadedModel], settings: ControlSettings) -> list[str]:
    """One sentence each. A version that is refused is there: its own state says why."""
    return [*_versions(models, settings), *_splits(models, settings)]


def without_effect(models: Mapping[str, LoadedModel], settings: ControlSettings) -> list[str]:
    """One sentence for each canary and shadow that is the version which calls get in any case, as
    after a promotion: nothing is missing, but neither is anything tried."""
    said, tried = [], set()
    for name, split in settings.splits["canary"].items():
        if split.share and (model := models.get(name)):
            if _is_default(split, model):
                said.append(f"canary of {name}: {split.reference} is what all calls get already")
            else:
                tried.add(name)
    for name, split in settings.splits["shadow"].items():
        # The calls of a canary are copied to it all the same.
        if split.share and name not in tried and (model := models.get(name)):
            if _is_default(split, model):
                said.append(
                    f"shadow of {name}: {split.reference} answers the calls itself, and gets no "
                    "copies of them"
                )
    return said


def other_answers(models: Mapping[str, LoadedModel], settings: ControlSettings) -> list[str]:
    """A sentence for each way in which a canary or shadow is not as the version that other calls
    get: its labels, as after a class was renamed; and, for those who send pixels or read the
    outputs by their place, what its graph takes and gives."""
    said = []
    for kind, splits in settings.splits.items():
        for name, split in splits.items():
            if not split.share or (model := models.get(name)) is None:
                continue
            tried, usual = version_of(split, model), model.default_version
            if tried in model.versions and usual in model.versions:
                new, old = (model.versions[v].engine.manifest for v in (tried, usual))
                which = f"{kind} of {name}: {split.reference}"
                said += [
                    f"{which} {how} {usual}, which calls get{what}"
                    for how, what in _differences(new, old, kind)
                ]
    return said


def _differences(new: Manifest, old: Manifest, kind: str) -> Iterator[tuple[str, str]]:
    """What stands before and behind the version that calls get. A shadow is compared by the names
    of its labels alone, and answers nobody."""
    gone, come = set(old.labels) - set(new.labels), set(new.labels) - set(old.labels)
    if gone or come:
        yield (
            "has other labels than",
            f": without {listed(sorted(gone))}; with {listed(sorted(come))}",
        )
    elif new.labels != old.labels and kind == "canary":
        yield "has its labels in another order than", ": an index is that of another label"
    side, usual = new.preprocessing.size, old.preprocessing.size
    if side != usual:
        lost = "can't be copied" if kind == "shadow" else "are refused"
        yield (
            "takes another size than",
            f": {side} x {side}; pixels of {usual} x {usual} {lost}",
        )
    if kind == "canary":
        outputs, usual_outputs = widths_of(new).keys(), widths_of(old).keys()
        for verb, names in (
            ("lacks an output of", usual_outputs - outputs),
            ("has an output more than", outputs - usual_outputs),
        ):
            if names:
                yield verb, f": {listed(sorted(names))}"


def _is_default(split: Split, model: LoadedModel) -> bool:
    return version_of(split, model) == model.default_version != 0


def _versions(models: Mapping[str, LoadedModel], settings: ControlSettings) -> Iterator[str]:
    """Not each number has to be there of each model: the setting is one for all."""
    numbers = settings.policy.numbers
    there = {n: m.served | m.refused.keys() for n, m in models.items()}
    for number in sorted(numbers.difference(*there.values())):
        yield f"versions asks for {number}, which no model has"
    for name in sorted(there):
        if numbers and numbers.isdisjoint(there[name]):
            yield f"versions is {settings.versions}, and {name} has none of these"


def _splits(models: Mapping[str, LoadedModel], settings: ControlSettings) -> Iterator[str]:
    for kind, splits in settings.splits.items():
        for name, split in splits.items():
            model = models.get(name)
            if model is None:
                yield f"{kind} of {name}: no model of this name is served"
            elif version_of(split, model) not in model.served:
                yield f"{kind} of {name}: no version or alias {split.reference} of it is served"
