"""One training run, from top to bottom: photos in, a published version out."""

import dataclasses
import time
from contextlib import nullcontext
from pathlib import Path

from trainer.checkpoint import Checkpoints
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData
from trainer.determinism import deterministic
from trainer.distributed import World, joined
from trainer.fitting import fit
from trainer.mlflow_run import mlflow_run
from trainer.preparing import Run, prepare
from trainer.publish import publish, published_before, published_by_job
from trainer.results import Published
from trainer.tracking import figures_on_test, tracked


def train(
    config: TrainConfig,
    console: Console,
    world: World | None = None,
    data: PhotoData | None = None,
) -> Published | None:
    """Train, export, check, measure and publish one version.

    Under torchrun every process calls it; None in those that do not lead. world: where they have
    met already. data: as of `prepare`. Raises PawprintError (InvalidRequest, InvalidData,
    FailedCheck); then nothing is published.
    """
    started = time.monotonic()
    meeting = joined() if world is None else nullcontext(world)
    with meeting as world, deterministic(config.deterministic):
        run = prepare(config, console, world, data)
        name = run.config.name
        published = world.of_leader(lambda: published_by_job(run))
        if published is not None:
            console.line(f"This has been published before it was started again: {published.place}")
            if world.leads and run.checkpoints is not None:
                _delete(run.checkpoints, console)  # it may not have come to that
            return published if world.leads else None
        if not world.leads:
            fit(run)
            world.after_leader(name)  # if it does not come so far, all are to be started again
            return None
        logs = Path(config.logs) if config.logs else run.repository.root / ".logs"
        try:
            with (
                mlflow_run(run.config, console, name) as recorded,
                tracked(logs, name, console.line) as track,
            ):
                run = dataclasses.replace(run, recorded=recorded, track=track)
                published = _fit_and_publish(run, started)
                _record(run, published)
            world.after_leader(name)
        except KeyboardInterrupt:  # of what is noted elsewhere: the version is there
            if published is None:
                raise
        return published


def _fit_and_publish(run: Run, started: float) -> Published:
    run, fitted = fit(run)
    earlier_s = run.checkpoints.earlier_s if run.checkpoints is not None else 0.0
    published = published_before(run, fitted)
    if published is None:
        published = publish(run, fitted, started - earlier_s)
    else:
        run.console.line(f"This has been published before it was stopped: {published.place}")
    if run.checkpoints is not None:
        _delete(run.checkpoints, run.console)
    return published


def _record(run: Run, published: Published) -> None:
    if run.track is not None:
        metrics = published.manifest.variants["fp32"].metrics
        run.track(figures_on_test(metrics), run.config.epochs)
    if run.recorded is not None:
        run.recorded.published(published)


def _delete(checkpoints: Checkpoints, console: Console) -> None:
    """The version is published; that stays so, whatever becomes of its checkpoint."""
    try:
        checkpoints.delete()
    except OSError as error:
        console.line(
            f"Warning: the checkpoint {checkpoints.path} can't be removed ({error.strerror}); "
            "delete it, or the same training is taken for one that is published"
        )
