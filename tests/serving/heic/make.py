"""Makes the pictures beside it, which no decoder can: pip install numpy pillow-heif; python make.py

pillow-heif brings an encoder; what reads photos, pi-heif, has none.
"""

from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

HERE = Path(__file__).parent


def quarters() -> np.ndarray:
    """uint8 [64, 96, 3]: red, green above; blue, grey below."""
    pixels = np.full((64, 96, 3), 128, np.uint8)
    pixels[:32, :48] = 220, 20, 30
    pixels[:32, 48:] = 20, 200, 30
    pixels[32:, :48] = 20, 30, 210
    return pixels


def main() -> None:
    pillow_heif.register_heif_opener()
    picture = Image.fromarray(quarters())
    picture.save(HERE / "upright.heic", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by a quarter: in HEIC a property of its own
    picture.save(HERE / "turned.heic", quality=90, exif=turned.tobytes())
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.uint8([[255] * 48 + [0] * 48]), 64, axis=0)))
    clear.save(HERE / "clear.heic", quality=90)
    deep = quarters().astype(np.uint16) * 257
    heif = pillow_heif.from_bytes("RGB;16", (96, 64), deep.tobytes())
    heif.save(HERE / "ten_bit.heic", quality=90)
    picture.convert("L").save(HERE / "grey.heic", quality=90)


if __name__ == "__main__":
    main()
