"""Photo bytes to the pixels that a model sees. The only copy: server, trainer and analysis use it.

An S×S RGB PNG passes through to the bit, so an adversarial image saved as PNG is judged as made.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from serving.errors import InvalidImage, Unavailable
from serving.jpeg_scans import MAX_SCANS, too_many_scans
from serving.modelspec import Preprocessing
from serving.photo_formats import not_a_photo, plugins, readable
from serving.photo_parts import PhotoParts

# Pillow would load its format plugins with the first photo, which would wait for them.
Image.init()
# Of its own limits; `max_pixels` is looked at before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # of libavif; each photo has a thread of ours

MAX_PIXELS = 64_000_000

# Decoding takes up to 16 bytes a pixel (WebP; docs/capacity.md has what else it takes), so pictures
# of more pixels than this, as they lie in memory, are decoded one at a time, whatever the number of
# threads.
_LARGE = 12_000_000
_one_large = threading.Lock()
_BAND = 1_000_000  # pixels
# Bytes a pixel that libwebp takes at once, for two canvases, and libjpeg, for all coefficients.
_AT_ONCE = 8

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# EXIF orientation -> what undoes it (CIPA DC-008, tag 274); 1 is upright.
_UPRIGHT: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Postponed(Exception):
    """What `before_large` raises where a large picture is to be decoded later."""


def preprocess(
    data: bytes,
    spec: Preprocessing,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] | None = None,
    before_large: Callable[[], object] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode one photo and return uint8 [S, S, 3]: upright, RGB, shorter side S, centre crop.

    formats: kinds that may be decoded, of `photo_formats`; None: all that can be.
    before_large: called before a picture is decoded of which there may be one at a time, and raises
    Postponed if that is not now; None waits.

    Raises InvalidImage with a sentence fit for the caller if the bytes are not a whole image of an
    allowed format within `max_pixels`.
    """
    image = decode(
        data,
        max_pixels=max_pixels,
        draft=spec.size,
        formats=formats,
        before_large=before_large,
    )
    return np.asarray(_square(image, spec))


def decode(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    draft: int | None = None,
    formats: Sequence[str] | None = None,
    before_large: Callable[[], object] | None = None,
) -> Image.Image:
    """Decode one photo to an upright RGB picture, each side at least `draft` px if it was before.

    A JPEG much larger than `draft` is decoded at a half, a quarter or an eighth of its size
    (Pillow's draft mode). Raises InvalidImage; Unavailable where the memory does not suffice.
    """
    if not data:
        raise InvalidImage("the photo is empty (0 bytes)")
    kinds = readable() if formats is None else formats
    whole = _webp_pixels(data)  # known before it is opened, as that takes memory already
    try:
        image = Image.open(PhotoParts(data), formats=plugins(kinds))
        whole = pixels = image.width * image.height
        if pixels > max_pixels:
            raise InvalidImage(
                f"the photo has {image.width} x {image.height} pixels; "
                f"at most {max_pixels:,} are allowed"
            )
        if image.tile and image.tile[0][0] == "bmp_rle":  # a loop in Python, with a turn a pixel
            raise InvalidImage("a BMP that is run-length encoded is not read; save it as PNG")
        jpeg = isinstance(image, JpegImageFile)  # one of several pictures (MPO), too
        if jpeg and too_many_scans(data):
            raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans")
        if draft is not None and jpeg:
            image.draft("RGB", (draft, draft))
            if "progressive" not in image.info:  # which is read whole, whatever comes of it
                pixels = image.width * image.height
        large = pixels > _LARGE
        if large and before_large is not None:
            before_large()
        with _one_large if large and before_large is None else nullcontext():
            image.load()
            upright = _upright(image)
            del image
            return _rgb(upright)
    except (InvalidImage, Postponed):
        raise
    except UnidentifiedImageError as error:
        raise InvalidImage(not_a_photo(data, kinds, ours=formats is None)) from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
        # As under `ulimit -v`: no fault of the photo. Not all decoders tell it from one.
        if isinstance(error, MemoryError) or (whole <= max_pixels and not _room_for(whole)):
            raise Unavailable(
                "there is too little memory to decode the photo: end what else runs here, or allow "
                "more"
            ) from error
        raise InvalidImage(f"the photo is damaged or truncated ({error})") from error


def _room_for(pixels: int) -> bool:
    try:
        np.empty(_AT_ONCE * pixels, np.uint8)  # nothing is written to it: it costs nothing
    except MemoryError:
        return False
    return True


def _webp_pixels(data: bytes) -> int:
    """Of a WebP, by its first chunk (RFC 9649); 0 for another photo, or where that is damaged."""
    if data[8:12] != b"WEBP":
        return 0
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return width * height


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # malformed EXIF raises almost anything; the pixels are sound all the same
        turn = None
    return image if turn is None else image.transpose(turn)


def _square(image: Image.Image, spec: Preprocessing) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((spec.size, spec.size), _FILTERS[spec.interpolation], box)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode that the allowed formats bring, as RGB; what is transparent becomes white."""
    if image.mode.startswith("I"):  # 16-bit grey PNG; convert("L") would clip it to white
        levels, clear = np.asarray(image), image.info.get("transparency")  # that level, of 65,536
        image = Image.fromarray((levels // 256).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(levels != clear).convert("L"))
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """In bands, as a whole picture would be copied four times."""
    result = Image.new("RGB", image.size)
    width = min(image.width, _BAND)
    height = _BAND // width
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            right, bottom = min(left + width, image.width), min(top + height, image.height)
            part = image.crop((left, top, right, bottom)).convert("RGBA")
            white = Image.new("RGBA", part.size, "white")
            result.paste(Image.alpha_composite(white, part).convert("RGB"), (left, top))
    return result
