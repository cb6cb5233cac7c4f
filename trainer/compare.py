"""The ways of transfer learning side by side: the same photos and splits, each way a version."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.durable import replace_file
from serving.modelspec import Manifest
from serving.storage import open_repository
from trainer.config import TrainConfig
from trainer.console import Console
from trainer.data import PhotoData
from trainer.distributed import World, joined
from trainer.figures import line_plot, log_times
from trainer.finished_ways import FinishedWays
from trainer.idle import idle
from trainer.instead import require_comparable
from trainer.pipeline import train
from trainer.preparing import decisive_settings, prepare
from trainer.publish import SETTINGS_OF_VARIANTS


@dataclass(frozen=True, kw_only=True)
class Row:
    way: str
    version: str  # name/number
    trained: str  # what was published in the end
    accuracy: float
    accuracy_low: float  # 95 % interval
    accuracy_high: float
    seconds: float
    megabytes: float  # of model.onnx
    latency_ms: float
    mean_recall: float | None = None  # where classes are balanced


def compare(
    settings: Mapping[str, Any], make: Callable[[Mapping[str, Any]], TrainConfig], console: Console
) -> list[Row]:
    """Train `settings` in each of four ways; `make` fills in the defaults of each.

    Beside the versions, <name>-<way>, lie <name>-comparison.json and .png; of a repository in a
    bucket, in the folder on this machine that stands for it. One that was stopped goes on after the
    ways that it has published, unless checkpoints is "none". Raises PawprintError, for settings
    that don't suit every way before the first training.
    """
    configs = configurations(settings, make)
    if said := idle(settings, list(configs.values())):
        console.line(said)
    checkpoints = configs["frozen"].checkpoints
    repository = open_repository(configs["frozen"].out)
    root = repository.root
    folder = root / ".checkpoints" if checkpoints is None else Path(checkpoints)
    rows = []
    with joined() as world:
        data, decisive = _require_all(configs, console, world)
        finished = FinishedWays(folder / f"{settings['name']}-ways.json", repository, decisive)
        known = {} if checkpoints == "none" else world.of_leader(finished.load)
        for way, config in configs.items():
            console.line()
            console.line(f"--- {way}")
            if way in known:
                row = Row(**known[way])
                console.line(f"This has been published before it was stopped: {row.version}")
                rows.append(row)
                continue
            published = train(config, console, world, data)
            if published is not None:
                row = _row(way, published.manifest, published.how, config)
                if checkpoints != "none":
                    finished.note(way, asdict(row))
                console.line(f"Published {row.version}: {row.trained}")  # now: what comes may fail
                rows.append(row)
    if world.leads:
        path = root / f"{settings['name']}-comparison.json"
        replace_file(path, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())
        _plot(rows, path.with_suffix(".png"))
        _say(rows, console)
        console.line(f"The table and its plot: {path} and .png")
        finished.delete()
    return rows


def configurations(
    settings: Mapping[str, Any], make: Callable[[Mapping[str, Any]], TrainConfig]
) -> dict[str, TrainConfig]:
    """way -> its settings, of one backbone and size. Raises InvalidRequest."""
    require_comparable(settings)
    pretrained = settings.get("weights", TrainConfig.weights)
    chosen = make({**settings, "weights": pretrained})
    fine = {k: v for k, v in settings.items() if k not in ("weights", "thaw", "name")}
    fine |= {"backbone": chosen.backbone, "size": chosen.size}
    fine |= {"interpolation": chosen.interpolation, "batch_size": chosen.batch_size}
    thawed = {"thaw": settings["thaw"]} if "thaw" in settings else {}
    ways: dict[str, dict[str, Any]] = {
        "frozen": {"weights": pretrained, "epochs": 0},
        "fine-tuned": {"weights": pretrained, **thawed},
        "full": {"weights": pretrained, "thaw": 1.0},
        "scratch": {"weights": "none"},
    }
    return {
        way: make({**fine, **own, "name": f"{settings['name']}-{way}"}) for way, own in ways.items()
    }


def _require_all(
    configs: Mapping[str, TrainConfig], console: Console, world: World
) -> tuple[PhotoData | None, dict[str, dict[str, Any]]]:
    """The photos, opened once for all ways; and way -> all that its version depends on. Raises
    PawprintError, before any is trained, for a way that this net or these photos don't suit."""
    data: PhotoData | None = None
    found = {}
    for way, config in configs.items():
        run = prepare(config, console, world, data)
        data = run.data
        of_variants = {name: getattr(config, name) for name in SETTINGS_OF_VARIANTS}
        found[way] = decisive_settings(run.classifier, data, run.config, run.teacher) | of_variants
        console = Console(to_stderr=True, silent=True)  # the others would say the same
    return data, found


def _row(way: str, manifest: Manifest, how: str, config: TrainConfig) -> Row:
    variant = manifest.variants["fp32"]
    return Row(
        way=way,
        version=f"{manifest.name}/{manifest.version}",
        trained=how,
        accuracy=variant.metrics.accuracy,
        accuracy_low=variant.metrics.accuracy_low,
        accuracy_high=variant.metrics.accuracy_high,
        seconds=manifest.training_seconds,
        megabytes=manifest.files[variant.file].size / 1e6,
        latency_ms=variant.latency_ms,
        mean_recall=None if config.balance == "none" else variant.metrics.mean_recall,
    )


def _say(rows: Sequence[Row], console: Console) -> None:
    console.table(
        "Ways of transfer learning, on the test photos",
        [
            (
                row.way,
                f"{row.accuracy:.4f} ({row.accuracy_low:.3f} to {row.accuracy_high:.3f})  "
                f"{_recall(row)}{row.seconds:.0f} s  {row.megabytes:.1f} MB  "
                f"{row.latency_ms:.1f} ms a photo  "
                f"[{row.version}: {row.trained}]",
            )
            for row in rows
        ],
    )


def _recall(row: Row) -> str:
    return "" if row.mean_recall is None else f"mean recall {row.mean_recall:.4f}  "


def _plot(rows: Sequence[Row], path: Path) -> None:
    with line_plot(path) as axes:
        for row in rows:
            below, above = row.accuracy - row.accuracy_low, row.accuracy_high - row.accuracy
            errors = [[max(0.0, below)], [max(0.0, above)]]
            axes.errorbar(row.seconds, row.accuracy, errors, fmt="o", capsize=3, label=row.way)
        log_times(axes)
        axes.set(xlabel="time, s", ylabel="accuracy on the test photos")
