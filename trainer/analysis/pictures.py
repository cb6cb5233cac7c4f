"""Pictures for people: triptychs of an attack, strips and animations of a descent, and their bytes.

Images are uint8 [S, S, 3] throughout. What a model is to judge is saved as PNG, losslessly; only
what a page shows is WebP.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.pictures import Pixels

# Latin, Greek, Cyrillic and Arabic; what it lacks, the page's own captions show.
_FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
_PANEL = 224  # pixels a side; small inputs are enlarged so that a caption fits beneath
_INK = (28, 32, 36)


def png_bytes(pixels: Pixels, *, packed: bool = True) -> bytes:
    """packed: small. Not so, it takes a fifth of the time, for one that is read again at once."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6 if packed else 0)
    return buffer.getvalue()


def data_uri(image: Path) -> str:
    """The picture as a data: address, so that a page needs no other file. WebP stays as it is."""
    if image.suffix == ".webp":
        data = image.read_bytes()
    else:
        buffer = io.BytesIO()
        Image.open(image).save(buffer, "WEBP", quality=85)
        data = buffer.getvalue()
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def amplified(original: Pixels, altered: Pixels) -> tuple[Pixels, int]:
    """The difference on mid-grey, times the largest whole factor that keeps it from clipping."""
    difference = altered.astype(int) - original.astype(int)
    largest = int(np.abs(difference).max())
    factor = max(1, 127 // largest) if largest else 1
    return np.clip(128 + factor * difference, 0, 255).astype(np.uint8), factor


def triptych(
    original: Pixels, altered: Pixels, *, before: str, after: str, size_of_it: str
) -> Image.Image:
    """Original, perturbation (amplified, the factor stated) and adversarial image, captioned."""
    difference, factor = amplified(original, altered)
    return captioned(
        [original, difference, altered],
        [before, f"perturbation x {factor}\n{size_of_it}", after],
    )


def captioned(panels: Sequence[Pixels], captions: Sequence[str], side: int = _PANEL) -> Image.Image:
    """Panels side by side with a caption of one or more lines under each."""
    size = max(9, side // 15)
    font = ImageFont.truetype(_FONT, size)
    line = round(size * 1.3)
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    gap = max(4, side // 28)
    width = len(panels) * side + (len(panels) - 1) * gap
    image = Image.new("RGB", (width, side + lines * line + gap), "white")
    draw = ImageDraw.Draw(image)
    for k, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = k * (side + gap)
        # Nearest: what is shown are the model's own pixels.
        picture = Image.fromarray(panel).resize((side, side), Image.Resampling.NEAREST)
        image.paste(picture, (left, 0))
        for row, text in enumerate(caption.split("\n")):
            fitted = _fitted(text, font, side)
            draw.text((left, side + gap // 2 + row * line), fitted, fill=_INK, font=font)
    return image


def strip(frames: Sequence[Pixels], captions: Sequence[str]) -> Image.Image:
    """The way of a descent, first to last, small."""
    return captioned(frames, captions, side=112)


def save_animation(frames: Sequence[Pixels], path: Path) -> None:
    """A looping WebP that rests on the last frame."""
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [180] * (len(pictures) - 1) + [1500]  # milliseconds
    pictures[0].save(
        path,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=80,
    )


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
