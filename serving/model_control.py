"""Which versions are loaded now: as the repository, the settings and the operator's calls have it.

A new version is loaded, proven and warm before the catalogue names it, and the one before it goes
only then: calls that it is answering hold it until they are answered.
"""

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import suppress
from dataclasses import replace

from serving.batching import Batcher
from serving.catalogue import Catalogue, ServedVersion
from serving.engine import Engine, load_engine
from serving.errors import (
    BrokenVersion,
    InvalidRequest,
    NotFound,
    PawprintError,
    Unavailable,
    listed,
)
from serving.inference_thread import InferenceThreads
from serving.layout import version_number
from serving.loaded_version import LoadedVersion, load_version, reason_of
from serving.loading import (
    LoadedModel,
    Wanted,
    update_model,
    with_version,
    without_versions,
)
from serving.observed_run import ObservedRun, OnBatch
from serving.repository import Repository
from serving.settings import ServerSettings
from serving.troubles import ALL, Troubles
from serving.unmet import other_answers, unmet, without_effect
from serving.version_state import VersionState, states_of
from serving.wiring import batch_settings, catalogue_of, warm_sizes
from serving.wishes import Wishes

log = logging.getLogger(__name__)

# How long until a broken engine is made anew again, where that failed; the last one ever after.
RESTART_WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0)

OnChange = Callable[[Catalogue], Awaitable[None]]


class ModelControl:
    """Belongs to the event loop; what it reads and loads, it reads and loads in other threads."""

    def __init__(
        self,
        settings: ServerSettings,
        repository: Repository,
        threads: InferenceThreads,
        on_batch: OnBatch,
        on_change: OnChange,
    ) -> None:
        """on_batch: told of each batch, in the thread that runs it. on_change: told, on the event
        loop, whenever other versions are served than before."""
        self.settings = settings
        self._repository = repository
        self._threads = threads
        self._on_batch = on_batch
        self._on_change = on_change
        self._reconfigured = asyncio.Event()  # other settings than the watch knows
        self._changing = asyncio.Lock()
        self._models: dict[str, LoadedModel] = {}
        # Models that another look would leave as they are, for as long as their stamp is this.
        self._settled: dict[str, Hashable] = {}
        self._served: dict[tuple[str, int], ServedVersion] = {}
        self._wishes = Wishes(repository)
        self.troubles = Troubles()
        self._unmet: list[str] = []
        self._restarts: set[asyncio.Task[None]] = set()

    async def load(self) -> Catalogue:
        """Load, prove and warm what is to be served; on_change is told once, of all of it.

        A model that can't be read is logged, and left out for now. Raises NotFound if there is no
        model to serve, Unavailable if the device or the repository can't be had.
        """
        async with self._changing:
            names = await asyncio.to_thread(self._names, self.settings)
            self.troubles.none_with_the_whole()
            for name in names:
                try:
                    self._models[name] = await asyncio.to_thread(self._update, name)
                except Exception as error:
                    self.troubles.met(name, error)
            if not any(model.versions for model in self._models.values()):
                where = f"no model to serve in {self.settings.models}"
                if self.troubles.texts:
                    raise Unavailable(f"{where}: {self.troubles.texts[0]}")
                found = f"versions is {self.settings.versions}, and none there is of these"
                refused = [r for model in self._models.values() for r in model.refused.values()]
                if refused:
                    found = f"every version there is refused ({refused[0].reason})"
                elif not names:
                    found = "there is none"
                raise NotFound(
                    f"{where}: {found}; publish one with `train`, or see `models verify`"
                )
            self._say_unmet()
            return await self._publish()

    async def watch(self) -> None:
        """Look at the repository every poll_s seconds, for as long as that is not cancelled."""
        while True:
            self._reconfigured.clear()
            poll_s = self.settings.poll_s if self.settings.control == "poll" else 0.0
            try:
                async with asyncio.timeout(poll_s or None):
                    await self._reconfigured.wait()
            except TimeoutError:
                try:
                    await self.rescan()
                except Exception:  # a defect of ours must not end the watch
                    log.exception("unexpected error while looking at the repository")

    async def rescan(self) -> None:
        """Serve what the repository and the settings ask for now.

        Whatever stands against that is logged, once, and what is served goes on being served.
        """
        async with self._changing:
            try:
                names = await asyncio.to_thread(self._names, self.settings)
            except PawprintError as error:
                self.troubles.met(ALL, error)
                return
            self.troubles.none_with_the_whole()
            for name, stamp in names.items():
                if stamp is not None and self._settled.get(name) == stamp:
                    continue
                try:
                    await self._change(name)
                    if stamp is not None and await asyncio.to_thread(self._nothing_pends, name):
                        self._settled[name] = stamp
                except Exception as error:  # the trouble of one model is not that of the others
                    self.troubles.met(name, error)
                else:
                    self.troubles.over(name)
            for name in self._models.keys() - names.keys():  # no longer in --only
                self._settled.pop(name, None)
                del self._models[name]
                await self._publish()
            self.troubles.keep_only(names)
            self._say_unmet()

    async def check(self, settings: ServerSettings) -> None:
        """Raises NotFound if a model that the settings ask for is not there."""
        with suppress(Unavailable):  # to be said by the next look
            await asyncio.to_thread(self._names, settings)

    async def reconfigure(self, settings: ServerSettings) -> None:
        """From now on, choose by these settings; see LIVE_SETTINGS for those that may differ."""
        self.settings = settings
        self._settled.clear()
        self._reconfigured.set()
        await self.rescan()
        async with self._changing:  # shares of calls are no change of versions
            await self._publish()

    async def load_version(self, name: str, reference: str) -> tuple[int, ...]:
        """Serve a version until it is unloaded, and change nothing else; "": serve what the policy
        asks for now.

        Returns the versions that are loaded. Raises NotFound, BrokenVersion, InvalidRequest;
        Unavailable if the repository can't be read.
        """
        self._check_control(name)
        async with self._changing:
            try:
                if reference:
                    version = await asyncio.to_thread(self._repository.resolve, name, reference)
                    await self._pin(name, version)
                else:
                    await asyncio.to_thread(self._check_there, name)
                    await self._change(name)
            except OSError as error:
                raise Unavailable(f"{name} can't be read: {error}") from error
            self._say_unmet()
            model = self._models[name]
            if not model.served:
                raise NotFound(self._why_none(name))
            return tuple(model.versions)

    async def unload_version(self, name: str, reference: str) -> tuple[int, ...]:
        """Serve a version no longer; "": none of the model. Returns those that are still loaded.

        Raises NotFound, InvalidRequest.
        """
        self._check_control(name)
        async with self._changing:
            model = self._models.get(name, LoadedModel())
            here = model.served
            if reference in model.aliases:
                here &= {model.aliases[reference]}
            elif reference:
                here &= {version_number(reference)}
            if not here:
                raise NotFound(f"model {name!r} has no version {reference!r} loaded")
            with self._wishes.forgotten_if_it_fails():
                digests = model.restarting | {v: it.digest for v, it in model.versions.items()}
                for version in here:
                    self._wishes.bar(name, version, digests[version])
                await self._change(name, functools.partial(without_versions, here, name))
            self._say_unmet()
            return tuple(self._models[name].versions)

    def close(self) -> None:
        """Make no engine anew any longer."""
        for restart in self._restarts:
            restart.cancel()

    def states(self) -> list[VersionState]:
        """What has become of every version that was tried, by model and version."""
        return [
            state for name in sorted(self._models) for state in states_of(name, self._models[name])
        ]

    def problems(self) -> list[str]:
        """What the settings ask for and is not served, but for refused versions; a line each."""
        aliases = (
            f"the aliases of {name} {model.alias_problem}"
            for name, model in sorted(self._models.items())
            if model.alias_problem
        )
        return [*self.troubles.texts, *aliases, *unmet(self._models, self.settings)]

    def remarks(self) -> list[str]:
        """Canaries and shadows that try nothing now, or differ from what other calls get; a line
        each."""
        return [
            *without_effect(self._models, self.settings),
            *other_answers(self._models, self.settings),
        ]

    # --- one change at a time: the lock is held

    async def _pin(self, name: str, version: int) -> None:
        """Raises what the repository does, BrokenVersion."""
        with self._wishes.forgotten_if_it_fails():
            self._wishes.pin(name, version)
            await self._change(
                name,
                functools.partial(with_version, self._repository, name, version, self._load_engine),
            )
            refused = self._models[name].refused
            if version in refused:
                raise BrokenVersion(refused[version].reason)

    async def _change(
        self, name: str, change: Callable[[LoadedModel], LoadedModel] | None = None
    ) -> None:
        """change: run in another thread; None: to what the repository and the settings ask for."""
        before = self._models.get(name)
        self._settled.pop(name, None)
        if change is None:
            after = await asyncio.to_thread(self._update, name)
        else:
            after = await asyncio.to_thread(change, before or LoadedModel())
        self._models[name] = after
        if after != before:
            log.info("%s: %s", name, _described(after))
            await self._publish()

    async def _publish(self) -> Catalogue:
        served = {}
        for name, model in self._models.items():
            for version, loaded in model.versions.items():
                served[name, version] = self._wire(loaded, self._served.get((name, version)))
        self._served = served
        catalogue = catalogue_of(self._models, served, self.settings)
        await self._on_change(catalogue)
        return catalogue

    def _wire(self, loaded: LoadedVersion, before: ServedVersion | None) -> ServedVersion:
        engine = loaded.engine
        if before is not None and before.engine is engine:
            return replace(before, findings=loaded.findings)
        loop = asyncio.get_running_loop()
        name, version = engine.manifest.name, engine.manifest.version

        def on_broken() -> None:
            loop.call_soon_threadsafe(self._restart_soon, name, version)

        run = ObservedRun(engine, self._on_batch, on_broken)
        return ServedVersion(
            engine=engine,
            batcher=Batcher(run, batch_settings(self.settings, engine.device), self._threads),
            findings=loaded.findings,
        )

    # --- an engine that fails

    def _restart_soon(self, name: str, version: int) -> None:
        task = asyncio.ensure_future(self._restart(name, version))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, name: str, version: int) -> None:
        """Let a broken engine go, and make it anew from the repository until that succeeds."""
        async with self._changing:
            model = self._models.get(name, LoadedModel())
            if version not in model.versions:
                return
            log.error("the engine of %s/%d fails again and again: it is made anew", name, version)
            others = dict(model.versions)
            restarting = model.restarting | {version: others.pop(version).digest}
            self._settled.pop(name, None)
            self._models[name] = replace(model, versions=others, restarting=restarting)
            del model, others
            await self._publish()
        for wait_s in itertools.chain(RESTART_WAITS_S, itertools.repeat(RESTART_WAITS_S[-1])):
            async with self._changing:
                if version not in self._models.get(name, LoadedModel()).restarting:
                    return  # it was unloaded, or another took its place
                try:
                    loaded = await asyncio.to_thread(
                        load_version, self._repository, name, version, self._load_engine
                    )
                except Exception as error:  # what a broken device raises, nobody can say
                    said = reason_of(error)
                    log.error("the engine of %s/%d can't be made anew: %s", name, version, said)
                    if await self._replaced(name, version, error):
                        return
                else:
                    model = self._models[name]
                    self._models[name] = replace(
                        model,
                        versions=dict(sorted({**model.versions, version: loaded}.items())),
                        restarting=_without(version, model.restarting),
                    )
                    await self._publish()
                    log.info("the engine of %s/%d runs again", name, version)
                    return
            await asyncio.sleep(wait_s)

    async def _replaced(self, name: str, version: int, error: Exception) -> bool:
        """Let another version step in for one whose files are gone or damaged.

        One that is damaged is refused only where the repository is watched, which tries it again,
        and where those who name no version get none that is newer.
        """
        before = self._models[name]
        without = replace(before, restarting=_without(version, before.restarting))
        try:
            if isinstance(error, NotFound):
                await self._change(name)
                # Back by now, it still waits for its engine.
                return version not in self._models[name].restarting
            if self.settings.control != "poll" or not isinstance(error, BrokenVersion):
                return False
            if not await asyncio.to_thread(self._repository.verify_to_load, name, version):
                return False  # it is the device, or the machine
            after = await asyncio.to_thread(self._update, name, without)
        except (PawprintError, OSError) as failed:
            log.error("no other version of %s can be looked for: %s", name, failed)
            return False
        if not 0 < after.default_version <= before.default_version:
            return False
        self._models[name] = after
        log.info("%s: %s", name, _described(after))
        await self._publish()
        return True

    def _why_none(self, name: str) -> str:
        """Why nothing of a model is loaded."""
        barred = sorted(self._wishes.barred(name))
        unloaded = f"unloaded: {', '.join(map(str, barred))}; load them by number" if barred else ""
        refused = [refusal.reason for refusal in self._models[name].refused.values()]
        asked = f"the version policy is {self.settings.versions}"
        why = "; ".join(filter(None, (unloaded, *refused))) or asked
        return f"no version of {name!r} is loaded: {why}"

    def _say_unmet(self) -> None:
        found = [*unmet(self._models, self.settings), *self.remarks()]
        for sentence in found:
            if sentence not in self._unmet:
                log.warning("%s", sentence)
        self._unmet = found

    # --- in other threads

    def _names(self, settings: ServerSettings) -> dict[str, Hashable]:
        """What to serve: in the repository, or loaded already; see Repository.stamps. Raises
        NotFound, Unavailable."""
        try:
            there = self._repository.stamps()
            lost = bool(self._models) and not there
            state = "holds no model" if lost and self._repository.exists() else "is not there"
        except OSError as error:
            raise Unavailable(f"{settings.models} can't be read: {error}") from error
        if lost:  # with its disk, it may be: nothing is known of what it holds
            raise Unavailable(f"{settings.models} {state}")
        only = settings.model_names
        check_only(settings, there, self._models)
        names = {*there, *self._models}
        return {name: there.get(name) for name in sorted(names & only if only else names)}

    def _check_there(self, name: str) -> None:
        """Raises NotFound for a model that has no version, whatever becomes of its aliases."""
        self._repository.check_version(name, max(self._repository.versions(name), default=0))

    def _nothing_pends(self, name: str) -> bool:
        """Whether a model changes only with its repository: nothing is tried again by itself."""
        model = self._models[name]
        return not (model.refused or model.restarting) and all(
            self._repository.stamp(name, version) in (loaded.stamp, ())
            for version, loaded in model.versions.items()
        )

    def _update(self, name: str, before: LoadedModel | None = None) -> LoadedModel:
        """before: as if this were served now."""
        splits = [of_kind.get(name) for of_kind in self.settings.splits.values()]
        numbers = {version_number(split.reference) for split in splits if split} - {0}
        wanted = Wanted(
            policy=self.settings.policy,
            also=frozenset(numbers | self._wishes.pinned(name)),
            never=frozenset(self._wishes.barred_now(name)),
        )
        now = before or self._models.get(name, LoadedModel())
        return update_model(self._repository, name, self._load_engine, wanted, now)

    def _load_engine(self, name: str, version: int) -> Engine:
        settings = self.settings
        return load_engine(
            self._repository,
            name,
            version,
            device=settings.device,
            cores=settings.inference_cores,
            precision=settings.precision,
            gpu=settings,
            warm_sizes=functools.partial(warm_sizes, settings),
        )

    # ---

    def _check_control(self, name: str) -> None:
        if self.settings.control == "none":
            raise InvalidRequest("`control` of this server is none: only SIGHUP changes versions")
        only = self.settings.model_names
        if only and name not in only:
            raise InvalidRequest(f"this server serves only {', '.join(sorted(only))}")


def check_only(
    settings: ServerSettings, there: Collection[str], loaded: Collection[str] = ()
) -> None:
    """Raises NotFound if `only` asks for a model that is neither there nor loaded."""
    if missing := sorted(settings.model_names.difference(there, loaded)):
        raise NotFound(
            f"no model {missing[0]!r} in {settings.models}, which `only` asks for; "
            f"models there: {listed(there)}"
        )


def _without(version: int, restarting: Mapping[int, str]) -> dict[int, str]:
    return {other: digest for other, digest in restarting.items() if other != version}


def _described(model: LoadedModel) -> str:
    versions = ", ".join(map(str, sorted(model.served))) or "none"
    aliases = ", ".join(f"{alias} is {version}" for alias, version in model.aliases.items())
    return f"versions {versions}; default {model.default_version}; {aliases or 'no aliases'}"
