"""What suits the settings that are not given: by the photos, the backbone and the device."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.errors import InvalidRequest, to_install
from trainer.auto import choose, choose_batch_size, choose_workers
from trainer.config import LARGEST_BATCH, TrainConfig
from trainer.console import Console
from trainer.listing import find_photos, require_there
from trainer.packages import outdated, require_packages
from trainer.shards import is_shards, shards_name

FROM_SCRATCH = {
    "epochs": 15,
    "learning_rate": 3e-3,
    "weight_decay": 1e-2,
    "thaw": 1.0,
}
# They begin to learn at a tenth of the rate only: AlexNet and SqueezeNet were right by chance.
WITHOUT_BATCH_NORM = {"learning_rate": 3e-4}
# Robustness is learnt by all stages, from pictures that are never the same.
ADVERSARIAL = {"epochs": 20, "learning_rate": 5e-4, "thaw": 1.0}


def with_defaults(given: Mapping[str, Any], console: Console | None = None) -> TrainConfig:
    """The settings given, and for the others what suits them. Raises InvalidRequest, InvalidData.

    The model is named after its folder of photos; backbone and epochs follow from the number of
    photos and the device, the batch size from the device and the size, the workers from the cores.
    """
    if not given.get("data"):
        raise InvalidRequest("--data is required; see train --help")
    defaults: dict[str, Any] = {"name": _name(given["data"])}
    if given.get("weights") == "none":
        defaults |= FROM_SCRATCH
    elif given.get("adversarial"):
        defaults |= ADVERSARIAL
    # Packages take seconds to import: what is wrong by itself is said at once. With the largest
    # batch every other setting goes together.
    TrainConfig(**{"batch_size": LARGEST_BATCH, **defaults, **given})
    require_there(given["data"])
    require_packages()
    console = console or Console(to_stderr=False, silent=True)
    for package in outdated():
        console.line(f"Warning: {package}; {to_install('train')}")
    defaults |= _chosen({**given, **defaults}, console)
    backbone = given.get("backbone", defaults.get("backbone", TrainConfig.backbone))
    if not {"size", "interpolation"} <= given.keys():
        from trainer.backbones import trained_input

        trained = trained_input(backbone)
        defaults |= {"size": trained.size, "interpolation": trained.interpolation}
    if given.get("weights") == "none" and "learning_rate" not in given:
        from trainer.running_statistics import has_batch_norm

        if not has_batch_norm(backbone):
            defaults |= WITHOUT_BATCH_NORM
    if "batch_size" not in given:
        size = given.get("size", defaults.get("size"))
        defaults["batch_size"] = choose_batch_size(size, _gpu_bytes())
    if "workers" not in given:
        defaults["workers"] = choose_workers(os.environ)
    return TrainConfig(**{**defaults, **given})


def _name(data: str) -> str:
    """The folder's own, the table's or the shards', as far as a model may have it."""
    if is_shards(data):
        name = shards_name(data)
    else:
        name = Path(data).resolve().name.removesuffix(".csv").removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _chosen(given: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """What trainer.auto chooses for these photos, of the settings that are not given."""
    wanted = {"backbone", "epochs"} - given.keys()
    if given.get("weights", "imagenet") not in ("imagenet", "none"):
        wanted.discard("backbone")  # the weights are those of one net
    if not wanted:
        return {}
    datasets = Path(given["datasets"]) if "datasets" in given else None
    photos = find_photos(given["data"], datasets, console.track)
    found = choose(len(photos), gpu=_gpu_bytes() is not None)
    return {name: found[name] for name in wanted}


def _gpu_bytes() -> int | None:
    """Memory of the GPU; None without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
