"""Inside the net: where it looks, clean and attacked, and what its layers see."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.analysis.assemble import Attacked
from trainer.analysis.attribution import activation_maps, grad_cam, spatial_layers
from trainer.analysis.pictures import captioned
from trainer.analysis.report import verdict, words
from trainer.analysis.study import Study, spread_over
from trainer.split import spread

PHOTOS = 4
LAYERS = 5
CHANNELS = 8


def write_looks(folder: Path, study: Study, attacked: Attacked) -> list[dict[str, Any]]:
    """Grad-CAM of the label it gives, for a photo as it is and as `attacked` left it."""
    (folder / "inside").mkdir(exist_ok=True)
    subject, photos = study.subject, study.photos
    place = {int(row): i for i, row in enumerate(study.rows)}
    entries = []
    for number, row in enumerate(spread_over(photos.labels, study.rows, PHOTOS)):
        i = place[int(row)]
        # The size that the picture kept is of: the first that turned it, or the last tried.
        e = min(int(attacked.piece["turned_at"][i]), len(attacked.plan.epsilons) - 1)
        pair = np.stack([photos.pixels[row], attacked.piece["adversarial"][i]])
        scores = np.stack([study.clean.served[0][row], attacked.piece["served"][e, 0, i]])
        classes = torch.from_numpy(scores.argmax(axis=1)).to(subject.device)
        heat = grad_cam(subject.net, subject.images(pair), classes).cpu().numpy()
        before, after = (verdict(p, subject.labels) for p in scores)
        panels = [pair[0], _over(pair[0], heat[0]), pair[1], _over(pair[1], heat[1])]
        picture = f"inside/look-{number}.webp"
        captions = ["as it is", words(before), "attacked", words(after)]
        captioned(panels, captions, side=160).save(folder / picture, quality=85)
        entries.append(
            {"file": photos.files[row], "picture": picture, "before": before, "after": after}
        )
    return entries


def write_sees(folder: Path, study: Study) -> dict[str, Any]:
    """The strongest channels of layers spread from the first to the last, for one photo."""
    (folder / "inside").mkdir(exist_ok=True)
    subject, row = study.subject, int(study.rows[0])
    image = subject.images(study.photos.pixels[row : row + 1])
    names = spatial_layers(subject.net, image)
    chosen = [names[i] for i in spread(len(names), LAYERS)]
    layers = []
    for number, (name, maps) in enumerate(activation_maps(subject.net, image, chosen).items()):
        channels = maps[0].cpu().numpy()
        strongest = np.argsort(-channels.mean(axis=(1, 2)), kind="stable")[:CHANNELS]
        picture = f"inside/layer-{number}.webp"
        panels = [_grey(channels[c]) for c in strongest]
        captions = [f"channel {c}" for c in strongest]
        captioned(panels, captions, side=104).save(folder / picture, quality=85)
        layers.append(
            {
                "name": name,
                "channels": len(channels),
                "size": channels.shape[1],
                "picture": picture,
            }
        )
    return {"file": study.photos.files[row], "layers": layers}


def _over(picture: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Heat in [0, 1] as a glow from blue to red over a dimmed picture."""
    glow = np.stack([heat, 1 - np.abs(2 * heat - 1), 1 - heat], axis=2) * 255
    return (0.55 * picture + 0.45 * glow).astype(np.uint8)


def _grey(channel: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    low, high = float(channel.min()), float(channel.max())
    level = ((channel - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return np.repeat(level[:, :, None], 3, axis=2)
