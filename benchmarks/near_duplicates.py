"""Which changes of a photo the search for copies sees through: photos are changed, saved anew, and
looked for among the others.

    python benchmarks/near_duplicates.py ../shared/data/pets

A Markdown table on stdout, and how many of the unchanged photos look like another.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from trainer.console import unshown
from trainer.near_duplicates import Thumbnail, groups_alike, thumbnail
from trainer.split import spread

Change = Callable[[Image.Image], Image.Image]
_QUALITY = 85


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of .jpg photos, in whatever folders")
    parser.add_argument("--photos", type=int, default=60)
    options = parser.parse_args()
    files = sorted(options.folder.rglob("*.jpg"))
    if len(files) < 2:
        parser.error(f"{options.folder} has {len(files)} .jpg photos; expected two or more")
    chosen = [files[i] for i in spread(len(files), options.photos)]
    photos = [Image.open(file).convert("RGB") for file in chosen]
    thumbnails = [thumbnail(file.read_bytes()) for file in files]
    print(f"| change | found, of {len(photos)} |\n|---|---|")
    for title, changes in _changes().items():
        counts = [_found(photos, thumbnails, chosen, files, *each) for each in changes]
        print(f"| {title} | {', '.join(map(str, counts))} |", flush=True)
    groups = groups_alike(np.stack(thumbnails), unshown)
    alike = int(np.sum(np.bincount(groups)[groups] > 1))
    print(f"\n{alike} of {len(files)} photos look like another as they are")
    return 0


def _changes() -> dict[str, list[tuple[Change, int]]]:
    """Title -> the changes, each with the JPEG quality at which the photo is saved anew."""
    shares, degrees = (0.02, 0.05, 0.1, 0.2), (1, 2, 3, 5)
    return {
        "two thirds of the size at quality 60": [(lambda p: ImageOps.scale(p, 2 / 3), 60)],
        "mirrored": [(ImageOps.mirror, _QUALITY)],
        "2, 5, 10, 20 % of each side cut off, about the centre": [
            (lambda p, s=share: _cut(p, s / 2, s), _QUALITY) for share in shares
        ],
        "2, 5, 10, 20 % cut off at a corner": [
            (lambda p, s=share: _cut(p, 0, s), _QUALITY) for share in shares
        ],
        "turned by 1, 2, 3, 5 degrees": [
            (lambda p, d=turn: p.rotate(d, Image.Resampling.BICUBIC), _QUALITY) for turn in degrees
        ],
        "5, 10, 20 % darker": [
            (lambda p, s=share: ImageEnhance.Brightness(p).enhance(1 - s), _QUALITY)
            for share in (0.05, 0.1, 0.2)
        ],
    }


def _cut(photo: Image.Image, begin: float, share: float) -> Image.Image:
    """Without `share` of each side, of which `begin` is left and above."""
    width, height = photo.size
    left, top = round(begin * width), round(begin * height)
    right, bottom = round((begin + 1 - share) * width), round((begin + 1 - share) * height)
    return photo.crop((left, top, right, bottom))


def _found(
    photos: Sequence[Image.Image],
    thumbnails: Sequence[Thumbnail],
    chosen: Sequence[Path],
    files: Sequence[Path],
    change: Change,
    quality: int,
) -> int:
    """How many of `photos`, changed, are found to be what they were, beside all the others."""
    changed = [thumbnail(_saved(change(photo), quality)) for photo in photos]
    groups = groups_alike(np.stack([*thumbnails, *changed]), unshown).tolist()
    own = [groups[files.index(file)] for file in chosen]
    return sum(one == other for one, other in zip(own, groups[len(files) :], strict=True))


def _saved(photo: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
