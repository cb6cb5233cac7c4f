"""What happens to a repository and a server, by chance: for model_control.py."""

import asyncio
import itertools
import random
from dataclasses import replace

import grpc

from protos.pawprint.v1 import admin_pb2
from serving.errors import PawprintError
from serving.status import failure_of
from tests.conftest import Running
from tests.faults.control_repository import DAMAGES, Publisher
from tests.faults.control_rules import ALIASES, NAMES, Model, Op, World
from tests.faults.control_surfaces import Surfaces

ON_DISK = {"publish", "delete", "restore", "damage", "mend", "promote", "name", "unname"}
ON_DISK |= {"vanish", "return"}


class Operations:
    """Chooses them by chance, and does them."""

    def __init__(self, publisher: Publisher, chance: random.Random) -> None:
        self._publisher = publisher
        self._chance = chance
        self._builds = itertools.count(100)

    def calls(self, running: Running, surfaces: Surfaces) -> None:
        """From now on there is a server."""
        self._server = running.server
        self._admin = surfaces.admin

    def choose(self, world: World) -> list[Op]:
        first = self._one(world)
        if self._chance.random() > 0.2:
            return [first]
        for _ in range(20):
            other = self._one(world)
            kinds = {first[0], other[0]}
            on_disk = kinds & ON_DISK
            if (
                kinds == {"publish"}
                or len(on_disk) < 2
                and not (
                    # A version that goes while it is read may be refused or be there.
                    first[1] == other[1] and on_disk and kinds & {"load", "crash"}
                )
                and first[0] != other[0]
            ):
                return [first, other]
        return [first]

    def _one(self, world: World) -> Op:
        chance = self._chance
        while True:
            name = chance.choice(NAMES)
            model = world.models[name]
            kind = chance.choices([*_WEIGHTS], [*_WEIGHTS.values()])[0]
            made = getattr(self, f"_{kind}")(world, name, model)
            if made is not None:
                return (kind, *made)

    def _publish(self, world: World, name: str, model: Model) -> Op | None:
        broken = self._chance.random() < 0.3
        damage = (
            self._chance.choice(["flip", "truncate", "remove", "labels", "golden"])
            if broken
            else ""
        )
        if len(model.disk) > 6:
            return None
        return name, str(next(self._builds)), damage

    def _delete(self, world: World, name: str, model: Model) -> Op | None:
        return (name, str(self._chance.choice([*model.disk]))) if model.disk else None

    def _restore(self, world: World, name: str, model: Model) -> Op | None:
        gone = {v: c for v, c in model.gone.items() if v not in model.disk}
        if not gone:
            return None
        version = self._chance.choice([*gone])
        return name, str(version)

    def _damage(self, world: World, name: str, model: Model) -> Op | None:
        sound = [version for version, there in model.disk.items() if there.sound]
        if not sound:
            return None
        return name, str(self._chance.choice(sound)), self._chance.choice([*DAMAGES])

    def _mend(self, world: World, name: str, model: Model) -> Op | None:
        broken = [v for v in model.disk if self._publisher.can_mend(name, v)]
        return (name, str(self._chance.choice(broken))) if broken else None

    def _promote(self, world: World, name: str, model: Model) -> Op | None:
        if not model.disk:
            return None
        version = self._chance.choice([*model.disk])
        return name, self._chance.choice(ALIASES), str(version)

    def _name(self, world: World, name: str, model: Model) -> Op | None:
        if not model.disk:
            return None
        version = self._chance.choice(["", *map(str, range(1, max(model.disk) + 3))])
        return name, self._chance.choice(ALIASES), version

    def _unname(self, world: World, name: str, model: Model) -> Op | None:
        return (name, self._chance.choice([*model.named])) if model.named else None

    def _vanish(self, world: World, name: str, model: Model) -> Op | None:
        return (name,) if model.disk and not model.away else None

    def _return(self, world: World, name: str, model: Model) -> Op | None:
        return (name,) if model.away and not model.disk else None

    def _load(self, world: World, name: str, model: Model) -> Op | None:
        return name, self._reference(model)

    def _unload(self, world: World, name: str, model: Model) -> Op | None:
        return name, self._reference(model)

    def _reference(self, model: Model) -> str:
        numbers = [str(v) for v in {*model.disk, *model.loaded, 1, 9}]
        return self._chance.choice(["", *ALIASES, *numbers, *numbers])

    def _crash(self, world: World, name: str, model: Model) -> Op | None:
        return (name, str(self._chance.choice([*model.served]))) if model.served else None

    def _look(self, world: World, name: str, model: Model) -> Op | None:
        return ("",)

    def _settings(self, world: World, name: str, model: Model) -> Op | None:
        chance = self._chance
        numbers = [str(v) for v in model.disk] or ["1"]
        some = ",".join(sorted(chance.sample(numbers, min(2, len(numbers)))))
        reference = chance.choice([*numbers, *ALIASES])
        share = chance.choice(["0", "0.3", "0.5", "0.8", "1"])
        split = chance.choice(["", f"{name}={reference}:{share}"])
        field_name, value = chance.choice(
            [
                ("versions", chance.choice(["latest:1", "latest:2", "latest:3", "all", "alias"])),
                ("versions", chance.choice([some, "latest:1"])),
                ("only", chance.choice(["", "", "", *[n for n in NAMES if world.models[n].disk]])),
                ("canary", split),
                ("canary", split),
                ("shadow", split),
                ("control", chance.choice(["poll", "poll", "explicit", "explicit", "none"])),
            ]
        )
        of, against = field_name, "shadow" if field_name == "canary" else "canary"
        if of in ("canary", "shadow") and getattr(world, against).get(name, ("",))[0] == reference:
            if (float(share) if of == "canary" else world.canary[name][1]) == 1:
                return None  # refused: nothing could be compared
        return "", f"{field_name}={value}"

    # --- doing them

    async def do(self, op: Op) -> str:
        kind, name, *rest = op
        if kind in ON_DISK:
            try:
                done = getattr(self._publisher, f"{kind}{'_' if kind == 'return' else ''}")
                return str(await asyncio.to_thread(done, name, *rest))
            except PawprintError as error:
                return failure_of(error).code.name
        if kind in ("load", "unload"):
            try:
                if kind == "load":
                    await self._admin.LoadModel(
                        admin_pb2.LoadModelRequest(model=name, version=rest[0]), timeout=30
                    )
                else:
                    await self._admin.UnloadModel(
                        admin_pb2.UnloadModelRequest(model=name, version=rest[0]), timeout=30
                    )
            except grpc.aio.AioRpcError as error:
                return error.code().name
        elif kind == "settings":
            changes = dict(change.split("=", 1) for change in rest)
            await self._server.reconfigure(replace(self._server.control.settings, **changes))
        elif kind == "look":
            await self._server.control.rescan()
        else:
            self._server.control._restart_soon(name, int(rest[0]))
        return "OK"


_WEIGHTS = {
    "publish": 8, "delete": 5, "restore": 4, "damage": 4, "mend": 5, "promote": 6, "name": 3,
    "unname": 2, "vanish": 1, "return": 4, "load": 8, "unload": 6, "crash": 4, "settings": 9,
    "look": 2,
}  # fmt: skip
