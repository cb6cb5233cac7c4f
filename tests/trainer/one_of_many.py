"""One process of a training, alone or started by torchrun: PHOTOS OUT [accumulate].

The first one writes the history and the weights to OUT.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from tests.trainer.test_training import Run
from trainer.distributed import joined


def main() -> None:
    photos, out, parts = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with joined() as world:
        run = Run(
            lambda **_: photos, "tiny", epochs=3, batch_size=8, learning_rate=3e-3,
            accumulate=parts, clip=1.0,
        )  # fmt: skip
        run.world = world
        for module in run.classifier.modules():
            if isinstance(module, nn.Dropout):  # each process draws its own
                module.p = 0.0
        result = run()
        mine = [photo.file for photo in world.share(run.data.splits["val"])]
        if world.leads:
            history = [[e.train_loss, e.train_accuracy, e.val_loss] for e in result.history[1:]]
            value = {"size": world.size, "history": history, "val": len(result.val_logits)}
            out.write_text(json.dumps({**value, "mine": mine}))
            torch.save(run.classifier.state_dict(), out.with_suffix(".pth"))


if __name__ == "__main__":
    main()
