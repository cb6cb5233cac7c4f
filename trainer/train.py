"""The `train` command: a folder of photos to a published version of a model."""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.train())

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from serving.errors import PawprintError
from trainer.config import TrainConfig
from trainer.console import Console, reader_may_leave
from trainer.defaults import with_defaults
from trainer.exit_status import FAILED, fail
from trainer.flags import parser
from trainer.given import read_settings
from trainer.idle import idle
from trainer.instead import require_comparable, require_rates, require_search
from trainer.interrupt import INTERRUPTED, ends_when_interrupted
from trainer.ranks import place_of
from trainer.threads import keep_to_cores

if TYPE_CHECKING:
    from serving.modelspec import Familiarity, Manifest, Metrics
    from trainer.results import Published

_INTERRUPTED = "error: interrupted; nothing was published"
_INTERRUPTED_AMONG_WAYS = "error: interrupted; what is done of the comparison stays published"


def main(arguments: Sequence[str] | None = None) -> int:
    flags = vars(parser().parse_args(arguments))
    last_words = _INTERRUPTED_AMONG_WAYS if flags["compare"] else _INTERRUPTED
    with ends_when_interrupted(last_words):
        return _train(flags, last_words)


def _train(flags: dict[str, Any], last_words: str) -> int:
    # Threads of OpenMP that wait must sleep, not spin: on a machine that does other work as well,
    # spinning was measured to make training six times slower. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    as_json, file = (flags.pop(name) for name in ("json", "config"))
    as_comparison, rate_only = (flags.pop(name) for name in ("compare", "find_rate"))
    trials = flags.pop("tune")
    try:
        rank, _ = place_of(os.environ) or (0, 1)
        leads = rank == 0
        console = Console(to_stderr=as_json, silent=not leads)
        given = read_settings(flags, os.environ, file)
        if as_comparison:
            require_comparable(given)
        elif rate_only:
            require_rates(given)
        elif trials is not None:
            require_search(given, trials)
        config = with_defaults(given, console)
        keep_to_cores()
        if as_comparison:
            from trainer.compare import compare

            rows = compare({**given, "name": config.name}, with_defaults, console)
            if as_json and leads:
                _print_json([dataclasses.asdict(row) for row in rows])
            return 0
        console.table("Configuration", _in_words(config, given))
        if said := idle(given, [config], rate_only=rate_only):
            console.line(said)
        if rate_only:
            from trainer.rate_finder import find_rate

            found = find_rate(config, console)
            if as_json and leads:
                _print_json(dataclasses.asdict(found))
            return 0
        if trials is not None:
            from trainer.tune import tune

            config = tune(given, config, trials, console)
        from trainer.pipeline import train

        published = train(config, console)
    except (PawprintError, OSError) as error:
        return fail(error)
    except Exception as error:
        whose = _whose_memory(error)
        if whose is None:
            raise
        print(
            f"error: {whose} has too little memory; end what else runs on it and run the same "
            "command, which goes on from a checkpoint if there is one, or try a smaller "
            "--batch-size, --size or backbone",
            file=sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        print(last_words, file=sys.stderr)
        return INTERRUPTED
    if published is None:
        return 0
    with reader_may_leave():
        _summary(published, config, console)
    if as_json:
        _print_json(_as_json(published))
    return 0


def _print_json(value: Any) -> None:
    with reader_may_leave():
        print(json.dumps(value, indent=2))


def _whose_memory(error: Exception) -> str | None:
    """Is too small; None: it is another error."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU"
    words = ("can't allocate memory", "Failed to allocate memory")  # torch's, ONNX Runtime's
    lacks = isinstance(error, MemoryError) or any(each in str(error) for each in words)
    return "this machine" if lacks else None


def _in_words(config: TrainConfig, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    values = dataclasses.asdict(config)
    if config.dropout is None:  # which is not none at all
        values["dropout"] = "the backbone's own"
    choices = {"name", "backbone", "size", "interpolation", "batch_size", "epochs", "workers"}
    chosen = choices - given.keys()
    return [(k, f"{v}  (chosen)" if k in chosen else str(v)) for k, v in values.items()]


def _summary(published: "Published", config: TrainConfig, console: Console) -> None:
    manifest = published.manifest
    metrics, parity = manifest.variants["fp32"].metrics, manifest.variants["fp32"].parity
    console.table(
        "Published",
        [
            ("version", published.place),
            ("trained", published.how),
            (
                "test accuracy",
                f"{metrics.accuracy:.4f}  ({metrics.correct} of {metrics.photos}; 95 % interval "
                f"{metrics.accuracy_low:.4f} to {metrics.accuracy_high:.4f})",
            ),
            *_mean_recall(metrics, config),
            ("calibration", f"ECE {metrics.ece:.4f}, temperature {manifest.temperature:.3f}"),
            *_familiarity(published.familiarity),
            (
                "ONNX - PyTorch",
                f"{parity.max_logit_error:.2g} in logits up to {parity.logit_scale:.3g}",
            ),
            ("latency", f"{manifest.variants['fp32'].latency_ms:.1f} ms a photo on this CPU"),
            *_other_precisions(manifest),
            ("time", f"{manifest.training_seconds:.0f} s"),
        ],
    )
    if published.other_labels:
        console.line(published.other_labels)
    console.line(f"Serve it: serve --models {config.out}")
    if published.stable is not None:
        console.line(
            f"Callers get version {published.stable}, which stable names; to give them this one: "
            f"models promote {manifest.name}/{manifest.version} --models {config.out}"
        )


def _mean_recall(metrics: "Metrics", config: TrainConfig) -> Iterator[tuple[str, str]]:
    if config.balance != "none":  # it is what the net was chosen by
        yield "mean recall", f"{metrics.mean_recall:.4f}  on test, each class alike"


def _familiarity(told: "Familiarity | None") -> Iterator[tuple[str, str]]:
    if told is not None:
        yield (
            "familiarity",
            f"of a picture, beside {told.photos} photos; at {told.threshold:.2g} or below it is "
            f"unfamiliar, as {told.unfamiliar['fp32']:.1%} of the test photos are",
        )


def _other_precisions(manifest: "Manifest") -> Iterator[tuple[str, str]]:
    fp32 = manifest.variants["fp32"]
    for precision in sorted(manifest.variants.keys() - {"fp32"}):
        variant = manifest.variants[precision]
        parity = variant.parity
        yield (
            precision,
            f"accuracy {variant.metrics.accuracy:.4f}, labels of {parity.top1_agreement:.1%} of "
            f"{parity.photos} photos as in fp32, {variant.latency_ms:.1f} ms a photo on this CPU "
            f"({fp32.latency_ms / variant.latency_ms:.2f} times as fast)",
        )


def _as_json(published: "Published") -> dict[str, Any]:
    manifest = published.manifest
    variant = manifest.variants["fp32"]
    return {
        "path": published.place,
        "name": manifest.name,
        "version": manifest.version,
        "trained": published.how,
        "metrics": dataclasses.asdict(variant.metrics),
        "parity": dataclasses.asdict(variant.parity),
        "variants": {p: dataclasses.asdict(v) for p, v in manifest.variants.items()},
        "training_seconds": manifest.training_seconds,
    }
