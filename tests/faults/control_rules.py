"""What docs/serving.md says of which versions are served: a model of the server's model control.

A `World` is a repository, the settings and what an operator asked for; `apply` is what one
operation makes of it. It knows neither files nor threads, and reads nothing of the server.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

OK, NOT_FOUND, UNAVAILABLE = "OK", "NOT_FOUND", "UNAVAILABLE"
INVALID, BROKEN = "INVALID_ARGUMENT", "FAILED_PRECONDITION"
STABLE = "stable"
NAMES = ("pets", "birds")
ALIASES = (STABLE, "canary", "beta")

Op = tuple[str, ...]  # the kind, the model, and what else it takes
Outcome = tuple[str, int, int]  # status, version, build; 0 where there is none


@dataclass(frozen=True)
class Copy:
    """What lies under the number of a version. Each publication is a build of its own."""

    build: int
    sound: bool = True
    whole: bool = True  # it has its digests, though it may not give its golden answers
    told: bool = True  # its manifest can be read


@dataclass
class Model:
    disk: dict[int, Copy] = field(default_factory=dict)
    named: dict[str, list[int]] = field(default_factory=dict)  # alias -> history; []: unreadable
    gone: dict[int, Copy] = field(default_factory=dict)  # deleted, and kept elsewhere
    away: tuple[dict[int, Copy], dict[str, list[int]]] | None = None  # all of it, moved away
    # In the server:
    here: bool = False  # it knows of the model
    served: dict[int, int] = field(default_factory=dict)  # version -> build
    restarting: dict[int, int] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    barred: dict[int, int] = field(default_factory=dict)

    @property
    def loaded(self) -> dict[int, int]:
        return self.served | self.restarting

    @property
    def default(self) -> int:
        return self.aliases.get(STABLE, max(self.loaded, default=0))

    def is_another(self, version: int) -> bool:
        """Whether the one there is known not to be the one that was unloaded."""
        there = self.disk.get(version)
        return there is not None and there.told and there.build != self.barred[version]

    def next_number(self) -> int:
        """Of those on disk, and of those that an alias names or named, none is given again."""
        return max([0, *self.disk, *(v for history in self.named.values() for v in history)]) + 1


@dataclass
class World:
    models: dict[str, Model]
    versions: str = "latest:1"
    only: str = ""
    canary: dict[str, tuple[str, float]] = field(default_factory=dict)
    shadow: dict[str, tuple[str, float]] = field(default_factory=dict)
    control: str = "poll"

    def branch(self) -> "World":
        return copy.deepcopy(self)

    def wanted(self, name: str) -> bool:
        return not self.only or name in self.only.split(",")

    def catalogue(self) -> dict[str, Model]:
        return {name: model for name, model in self.models.items() if model.here and model.loaded}

    def starts(self) -> bool:
        """Whether a server finds a version to serve."""
        world = self.branch()
        world.look()
        return bool(world.catalogue())

    # --- calls

    def outcomes(self, name: str, reference: str, key: str | None) -> set[Outcome]:
        """What may come of a call: more than one where a canary has its share."""
        model = self.catalogue().get(name)
        if model is None:
            return {(NOT_FOUND, 0, 0)}
        if reference:
            version = model.aliases.get(reference, int(reference) if reference.isdigit() else 0)
            return {_outcome(model, version)}
        found = {_outcome(model, model.default)}
        canary, share = self.split("canary", name)
        if canary in model.served and share and key is not None:
            there = {_outcome(model, canary)}
            found = there if share == 1 else found | there
        return found

    def split(self, kind: str, name: str) -> tuple[int, float]:
        reference, share = (self.canary if kind == "canary" else self.shadow).get(name, ("", 0.0))
        aliases = self.models[name].aliases
        return (int(reference) if reference.isdigit() else aliases.get(reference, 0)), share

    # --- the server's look at the repository

    def look(self) -> None:
        for name, model in self.models.items():
            if self.wanted(name) and (model.disk or model.here):
                self.look_at(name)
            elif not self.wanted(name):
                self.forget(name)

    def forget(self, name: str) -> None:
        model = self.models[name]
        model.here, model.served, model.restarting, model.aliases = False, {}, {}, {}
        model.refused = set()

    def look_at(self, name: str, refuse: int = 0) -> None:
        """refuse: a version whose engine failed and whose files are damaged."""
        model = self.models[name]
        before = copy.deepcopy(model)
        before.restarting.pop(refuse, None)
        model.here = True
        model.served, model.restarting, model.refused = {}, {}, set()
        barred = {version for version in model.barred if not model.is_another(version)}

        def serve(version: int) -> bool:
            there = model.disk.get(version)
            if version in barred:
                # What had taken its number is another one, and stays.
                model.served |= {v: b for v, b in before.served.items() if v == version}
                return version in model.served
            if version in before.restarting and there:
                model.restarting[version] = before.restarting[version]
            elif version in before.served:
                # Another one under its number takes its place; one that is damaged does not.
                model.served[version] = (
                    there.build if there and there.sound else (before.served[version])
                )
            elif there and there.sound:
                model.served[version] = there.build
            elif there:
                model.refused.add(version)
            return version in model.loaded

        count = 0
        newest, numbers = _policy(self.versions)
        for version in sorted({*model.disk, *before.loaded}, reverse=True):
            if count < newest:
                count += serve(version) or version in barred
        also = {self.split_number("canary", name), self.split_number("shadow", name)}
        for version in sorted(numbers | model.pinned | also - {0}):
            serve(version)
        model.aliases = {}
        for alias, version in self.named(name, before).items():
            earlier = before.aliases.get(alias, 0)
            if serve(version):
                model.aliases[alias] = version
            elif serve(earlier):
                model.aliases[alias] = earlier
        if not model.loaded:  # a model keeps what it had where nothing that is asked for is there
            for version in before.loaded:
                serve(version)
            model.aliases = {a: v for a, v in before.aliases.items() if v in model.loaded}

    def split_number(self, kind: str, name: str) -> int:
        reference, _ = (self.canary if kind == "canary" else self.shadow).get(name, ("", 0.0))
        return int(reference) if reference.isdigit() else 0

    def named(self, name: str, before: Model) -> dict[str, int]:
        """What the aliases are to name."""
        model = self.models[name]
        if any(not history for history in model.named.values()):
            return before.aliases  # unreadable
        found = {}
        for alias in sorted({*model.named, *before.aliases}):
            version = model.named.get(alias, [0])[0]
            earlier = before.aliases.get(alias, 0)
            if version in model.disk:
                found[alias] = version
            elif earlier and (version or earlier not in model.disk):
                found[alias] = earlier
        return found

    # --- engines that fail

    def restart(self) -> None:
        """What comes of those that are being made anew."""
        for name, model in self.models.items():
            for version in [*model.restarting]:
                there = model.disk.get(version)
                if there and there.sound:
                    del model.restarting[version]
                    model.served[version] = there.build
                elif there is None:
                    del model.restarting[version]
                    self.look_at(name)
                elif self.control == "poll" and not there.whole:
                    without = self.branch()
                    without.look_at(name, refuse=version)
                    if 0 < without.models[name].default <= model.default:
                        self.models[name] = without.models[name]

    # --- operations: each returns the status that whoever asked for it gets

    def apply(self, op: Op) -> str:
        kind, name, *rest = op
        model = self.models.get(name)
        return str(getattr(self, f"do_{kind}")(name, model, *rest))

    def do_publish(self, name: str, model: Model, build: str, damage: str) -> str:
        version = model.next_number()
        model.disk[version] = Copy(int(build), damage == "", damage in ("", "labels", "golden"))
        return f"{name}/{version}"

    def do_delete(self, name: str, model: Model, version: str) -> str:
        model.gone[int(version)] = model.disk.pop(int(version))
        return OK

    def do_restore(self, name: str, model: Model, version: str) -> str:
        model.disk[int(version)] = model.gone.pop(int(version))
        return OK

    def do_vanish(self, name: str, model: Model) -> str:
        model.away, model.disk, model.named = (model.disk, model.named), {}, {}
        return OK

    def do_return(self, name: str, model: Model) -> str:
        assert model.away is not None
        model.disk, model.named = model.away
        model.away = None
        return OK

    def do_damage(self, name: str, model: Model, version: str, how: str) -> str:
        there = model.disk[int(version)]
        told = there.told and how != "manifest"
        model.disk[int(version)] = Copy(there.build, sound=False, whole=False, told=told)
        return OK

    def do_mend(self, name: str, model: Model, version: str) -> str:
        model.disk[int(version)] = Copy(model.disk[int(version)].build)
        return OK

    def do_promote(self, name: str, model: Model, alias: str, version: str) -> str:
        """As `models promote`, which verifies it."""
        there, history = model.disk.get(int(version)), model.named.get(alias, [])
        if there is None:
            return NOT_FOUND
        if not there.whole or model.named.get(alias) == []:
            return BROKEN
        if history[:1] != [int(version)]:
            model.named[alias] = [int(version), *history]
        return OK

    def do_name(self, name: str, model: Model, alias: str, version: str) -> str:
        """As where a repository is copied and its aliases come first; "": unreadable."""
        model.named[alias] = [int(version)] if version else []
        return OK

    def do_unname(self, name: str, model: Model, alias: str) -> str:
        model.named.pop(alias, None)
        return OK

    def do_load(self, name: str, model: Model, reference: str) -> str:
        if self.control == "none" or not self.wanted(name):
            return INVALID
        version = 0
        if reference.isdigit():
            version = int(reference)
        else:
            if model.named.get(reference) == []:
                return BROKEN
            if reference in model.named:
                version = model.named[reference][0]
        if (version or reference) and version not in model.disk or not model.disk:
            return NOT_FOUND
        if not reference:
            self.look_at(name)
            return OK if model.loaded else NOT_FOUND
        there = model.disk[version]
        if version in model.served:
            if there.sound:
                model.served[version] = there.build
        elif version not in model.restarting:
            if not there.sound:
                model.here = True
                model.refused.add(version)
                return BROKEN
            model.served[version] = there.build
            model.refused.discard(version)
        model.here = True
        model.pinned.add(version)
        model.barred.pop(version, None)
        for alias, target in self.named(name, model).items():
            if target == version:
                model.aliases[alias] = version
        return OK

    def do_unload(self, name: str, model: Model, reference: str) -> str:
        if self.control == "none" or not self.wanted(name):
            return INVALID
        version = model.aliases.get(reference, int(reference) if reference.isdigit() else 0)
        gone = {v: b for v, b in model.loaded.items() if not reference or v == version}
        if not gone:
            return NOT_FOUND
        for version, build in gone.items():
            model.barred[version] = build
            model.pinned.discard(version)
            model.served.pop(version, None)
            model.restarting.pop(version, None)
        model.aliases = {a: v for a, v in model.aliases.items() if v not in gone}
        return OK

    def do_settings(self, name: str, model: None, *changes: str) -> str:
        """SIGHUP with other settings, FIELD=VALUE."""
        for change in changes:
            field_name, _, value = change.partition("=")
            if field_name in ("canary", "shadow"):
                splits = {}
                for part in filter(None, value.split(",")):
                    of, _, split = part.partition("=")
                    reference, _, share = split.partition(":")
                    splits[of] = (reference, float(share))
                setattr(self, field_name, splits)
            else:
                setattr(self, field_name, value)
        self.look()
        return OK

    def do_look(self, name: str, model: None) -> str:
        self.look()
        return OK

    def do_crash(self, name: str, model: Model, version: str) -> str:
        if int(version) in model.served:
            model.restarting[int(version)] = model.served.pop(int(version))
        return OK


def _outcome(model: Model, version: int) -> Outcome:
    if version in model.served:
        return OK, version, model.served[version]
    return (UNAVAILABLE if version in model.restarting else NOT_FOUND), 0, 0


def _policy(text: str) -> tuple[int, set[int]]:
    if text == "all":
        return 10**9, set()
    if text == "alias":
        return 0, set()
    if text.startswith("latest:"):
        return int(text.removeprefix("latest:")), set()
    return 0, set(map(int, text.split(",")))


def ways(world: World, ops: list[Op]) -> Iterator[tuple[list[str], list[World], World]]:
    """What may come of operations that are begun at once: the status of each, all that may be
    seen meanwhile, and the end. A server that polls may look between any two."""
    orders = [[*enumerate(ops)]]
    if len(ops) == 2:
        orders.append(orders[0][::-1])
    looks = (False, True) if world.control == "poll" else (False,)
    for order in orders:
        for between in looks if len(ops) == 2 else (False,):
            now, seen = world.branch(), [world]
            statuses = [""] * len(ops)
            for step, (index, op) in enumerate(order):
                if op[0] == "settings":  # shares change before the versions do
                    early = now.branch()
                    early.apply(op)
                    seen.append(replace_models(early, now))
                statuses[index] = now.apply(op)
                seen.append(now.branch())
                if between or step == len(order) - 1:
                    if now.control == "poll":
                        now.look()
                        seen.append(now.branch())
                    now.restart()
                    seen.append(now.branch())
            yield statuses, seen, now


def replace_models(world: World, other: World) -> World:
    mixed = world.branch()
    mixed.models = copy.deepcopy(other.models)
    return mixed
