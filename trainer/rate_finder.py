"""A learning-rate range test: rates that rise from step to step, until the loss does.

Smith 2015, arXiv:1506.01186, section 3.3; the rates rise by a factor, not by a sum.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.durable import replace_file
from trainer.balance import batches_of, make_order
from trainer.batches import batch_count
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.determinism import deterministic
from trainer.distributed import joined
from trainer.errors import FailedCheck
from trainer.figures import line_plot
from trainer.fitting import freeze_early_stages, make_learner, start_from_probe
from trainer.preparing import prepare
from trainer.split import spread

Floats = npt.NDArray[np.float64]

_LOWEST, _HIGHEST, _STEPS = 1e-7, 1.0, 100
_WINDOW = 5  # steps on either side over which losses are averaged
_FIRST = 10  # steps, whose rates change nothing yet: what their losses differ by is the photos
_DIVERGED = 4.0  # times the highest of their losses, and more than guessing costs: it is enough
_ROWS = 15  # of the table


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    suggested: float | None  # None: no rate lowered the loss
    rates: list[float]
    losses: list[float]  # mean of each step's photos
    plot: str


def smooth(losses: Floats) -> Floats:
    """The mean of each loss and those of _WINDOW steps before and after it, as far as there are.

    Centred, so that a fall is seen at the rate that it came with.
    """
    kernel = np.ones(2 * _WINDOW + 1)
    sums, counts = (
        np.convolve(values, kernel)[_WINDOW:-_WINDOW] for values in (losses, np.ones_like(losses))
    )
    return np.asarray(sums / counts)


def suggest(rates: Floats, losses: Floats) -> float | None:
    """A tenth of the rate at which the smoothed loss is lowest; None where none lowers it.

    At the lowest point the loss is about to rise, and a peak that a whole training is to bear lies
    well before it. Where it lies among the first steps it is lowest by chance.
    """
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin())
    return float(rates[lowest]) / 10 if lowest >= _FIRST else None


def find_rate(config: TrainConfig, console: Console) -> RangeTest:
    """Try rates on the train photos and publish nothing; <name>-learning-rate.json and .png lie in
    the model repository. Raises PawprintError.
    """
    with joined() as world, deterministic(config.deterministic):
        run = prepare(config, console, world)
        if config.probes:
            run, *_ = start_from_probe(run)
        else:
            freeze_early_stages(run)
        learner = make_learner(run)
        photos = len(run.data.splits["train"])
        batches = batch_count(photos, config.batch_size, world.size)
        next_order = make_order(run.data.targets("train"), config.balance)
        rates: list[float] = []
        losses: list[float] = []
        order: list[tuple[list[int], list[int]]] = []
        with console.bar("Trying learning rates", _STEPS) as advance:
            for step in range(_STEPS):
                view = step // batches
                if step % batches == 0:
                    order = batches_of(next_order, batches, config.seed, view)
                batch, repeats = order[step % batches]
                rate = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
                loss, _ = learner.learn(
                    batch,
                    repeats=repeats,
                    view=view,
                    rate=rate,
                    step=step,
                    progress=1.0,  # an adversary that grew with the rate would hide what that does
                )
                mean = loss / len(batch)
                if not math.isfinite(mean):
                    break
                if len(losses) >= _FIRST:
                    most = max(_DIVERGED * max(losses[:_FIRST]), math.log(len(run.data.labels)))
                    if sum([*losses[1 - _WINDOW :], mean]) / _WINDOW > most:
                        break
                rates.append(rate)
                losses.append(mean)
                advance(1, f"rate {rate:.2g} loss {mean:.3f}")
        if len(rates) < 2:
            raise FailedCheck(f"the loss is no number at a learning rate of {_LOWEST:g} already")
        root = run.repository.root
        plot = root / f"{config.name}-learning-rate.png"
        found = RangeTest(
            suggested=suggest(np.array(rates), np.array(losses)),
            rates=rates,
            losses=losses,
            plot=str(plot),
        )
        if world.leads:
            _say(found, console)  # before what a full disk may end
            _plot(found, plot)
            text = json.dumps(asdict(found), indent=1) + "\n"
            replace_file(plot.with_suffix(".json"), text.encode())
    return found


def _say(found: RangeTest, console: Console) -> None:
    smoothed = smooth(np.array(found.losses))
    rows = [(f"{found.rates[i]:.1e}", f"{smoothed[i]:.4f}") for i in spread(len(smoothed), _ROWS)]
    console.table("Learning rate and loss", rows)
    if found.suggested is None:
        console.line(
            "No rate lowers the loss from where it starts: a linear head may be all there is to "
            f"gain (--epochs 0). {found.plot}"
        )
        return
    console.line(f"Suggested: --learning-rate {found.suggested:.1e}  ({found.plot})")


def _plot(found: RangeTest, path: Path) -> None:
    with line_plot(path) as axes:
        axes.plot(found.rates, found.losses, ".", alpha=0.4, label="of each step")
        axes.plot(found.rates, smooth(np.array(found.losses)), label="smoothed")
        if found.suggested is not None:
            text = f"suggested: {found.suggested:.1e}"
            axes.axvline(found.suggested, linestyle="--", color="grey", label=text)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss, nats")
