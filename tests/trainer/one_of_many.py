"""One process of some trainings, alone or started by torchrun: PHOTOS OUT.

Of each the first process writes the history and the weights to OUT/<name>.pth.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.trainer.test_checkpoint import checkpoints
from tests.trainer.test_training import Run
from trainer.distributed import World, joined
from trainer.feature_cache import FeatureCache
from trainer.features import extract
from trainer.training import Epoch

TRAININGS: dict[str, dict[str, Any]] = {
    "tiny": {"backbone": "tiny", "clip": 1.0, "learning_rate": 3e-3},
    "timm": {"backbone": "timm/test_efficientnet", "thaw": 1.0, "optimizer": "momentum"},
    "bf16": {"backbone": "tiny", "amp": "bf16", "learning_rate": 3e-3},
    "parts": {"backbone": "timm/test_vit", "accumulate": 2, "optimizer": "momentum"},
    # Batch norm sees a part at a time: it must be the same part.
    "normed parts": {"backbone": "tiny", "accumulate": 2, "batch_size": 16, "learning_rate": 3e-3},
    "gradual": {"backbone": "tiny", "gradual": True, "thaw": 0.5, "learning_rate": 3e-3},
    "whole": {"backbone": "tiny", "learning_rate": 3e-3},
    "stopped": {"backbone": "tiny", "learning_rate": 3e-3},
}


class Stop(Exception):
    """Ends a training in all processes at once."""


class Reported(list[Epoch]):
    def append(self, epoch: Epoch) -> None:
        super().append(epoch)
        if epoch.epoch == 2:  # the checkpoint is that of epoch 1
            raise Stop


def training(photos: Path, world: World, settings: dict[str, Any]) -> Run:
    run = Run(lambda **_: photos, **{"epochs": 3, "batch_size": 8, **settings})
    run.world = world
    for module in run.classifier.modules():
        if isinstance(module, nn.Dropout):  # each process draws its own
            module.p = 0.0
    return run


def keep_features(photos: Path, out: Path, world: World) -> None:
    """Of one photo, and of six: how many of them are then in the cache, and what they are."""
    run = training(photos, world, TRAININGS["tiny"])
    cache = FeatureCache(out / f"features-{world.rank}", {}, print)
    kept = []
    for count in (1, 6):
        members = run.data.splits["train"][:count]
        features = extract(
            run.classifier, members, run.data.squares, cache, lambda *_: None, world=world
        )
        kept.append(len(cache.load()))
    if world.leads:
        torch.save({"kept": kept, "features": torch.from_numpy(features)}, out / "features.pth")


def main() -> None:
    photos, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with joined() as world:
        keep_features(photos, out, world)
        for name, settings in TRAININGS.items():
            run = training(photos, world, settings)
            if name == "stopped":
                own = out / f"of-{world.rank}"  # as on machines that share no folder
                run.checkpoints, run.reported = checkpoints(own), Reported()
                try:
                    run()
                except Stop:
                    run = training(photos, world, settings)
                    run.checkpoints = checkpoints(own)
            result = run()
            mine = len(world.share(run.data.splits["val"]))
            if world.leads:
                content = {
                    "size": world.size,
                    "history": [
                        [e.train_loss, e.train_accuracy, e.val_loss] for e in result.history[1:]
                    ],
                    "reported": [epoch.epoch for epoch in run.reported],
                    "val": (mine, len(result.val_logits)),
                    "weights": run.classifier.state_dict(),
                    "modules": [f"{type(part)}" for part in run.classifier.modules()],
                }
                torch.save(content, out / f"{name}.pth")


if __name__ == "__main__":
    main()
