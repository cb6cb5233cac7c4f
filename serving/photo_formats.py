"""Which kinds of file are photos, and what others are. A client without NumPy asks, too."""

import functools
from collections.abc import Sequence

from PIL import Image, features

from serving.errors import InvalidRequest, lacks, to_install

# What a server decodes unless told otherwise.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# What it decodes if told to. What such a file says of its size need not be that of the pictures
# within, so that 3 kB may take seconds of a thread and some hundred MiB, whatever the limits are.
ON_DEMAND = ("AVIF", "HEIC")
# How the names of their files end, in lower case; an MPO is a JPEG that others follow.
ENDINGS = frozenset(
    end for end, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")
) | {".avif", ".heic", ".heif", ".hif"}

# What else lies among photos: at which byte, what stands there, what it is.
_OTHERS = (
    (4, b"ftyphei", "HEIC"), (4, b"ftyphev", "HEIC"), (4, b"ftypmif1", "HEIC"),
    (4, b"ftypavi", "AVIF"), (4, b"ftypcrx", "a camera's raw file"), (4, b"ftyp", "a video"),
    (0, b"II*\0", "TIFF or a camera's raw file"), (0, b"MM\0*", "TIFF or a camera's raw file"),
    (0, b"\xff\x0a", "JPEG XL"), (0, b"\0\0\0\x0cJXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"),
    (0, b"8BPS", "a Photoshop file"), (0, b"%PDF", "PDF"),
)  # fmt: skip
_STARTS_LOOKED_AT = 512


def require(kind: str) -> None:
    """Raises InvalidRequest where photos of that kind, of FORMATS or ON_DEMAND, can't be decoded
    here."""
    if kind == "AVIF" and not features.check("avif"):
        raise InvalidRequest("the Pillow that is installed can't read AVIF; install its wheel")
    if kind == "HEIC":
        try:
            import pi_heif

            # A thread each, as the photos of one call are decoded side by side; of what else such
            # a file holds nothing is looked at.
            pi_heif.register_heif_opener(
                decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
            )
        except Exception as error:  # one whose library can't be loaded raises what it likes
            raise InvalidRequest(lacks("HEIC", "pi_heif", error, "heic")) from error


@functools.cache
def readable() -> tuple[str, ...]:
    """All kinds that can be decoded here."""
    found = list(FORMATS)
    for kind in ON_DEMAND:
        try:
            require(kind)
        except InvalidRequest:
            continue
        found.append(kind)
    return tuple(found)


def read_formats(text: str) -> tuple[str, ...]:
    """Of `jpeg,png`. Raises InvalidRequest for a kind that is unknown or can't be decoded here."""
    kinds = tuple(dict.fromkeys(kind.strip().upper() for kind in text.split(",")))
    known = (*FORMATS, *ON_DEMAND)
    if unknown := [kind for kind in kinds if kind not in known]:
        raise InvalidRequest(
            f"photo_formats must be of {','.join(known).lower()}, got {unknown[0].lower()!r}"
        )
    for kind in kinds:
        require(kind)
    return kinds


def plugins(kinds: Sequence[str]) -> list[str]:
    """The kinds as Pillow calls them."""
    return ["HEIF" if kind == "HEIC" else kind for kind in kinds]


def not_a_photo(data: bytes, kinds: Sequence[str], *, ours: bool = False) -> str:
    """What is wrong with bytes that no decoder of these kinds knows, and what helps. ours: who
    reads it can also install a decoder."""
    wrong = f"not an image in one of the formats {', '.join(kinds)}"
    for place, magic, kind in _OTHERS:
        if data.startswith(magic, place):
            if kind in kinds:
                return "the photo is damaged or truncated"
            help = "its frames may be saved as JPEG" if kind == "a video" else "save it as JPEG"
            if kind == "HEIC" and ours:
                help += f", or {to_install('heic')}"
            return f"{wrong}: it is {kind}; {help}"
    start = data[:_STARTS_LOOKED_AT].lstrip().lower()
    if b"<svg" in start:
        return f"{wrong}: it is SVG; save it as PNG"
    if start.startswith((b"<!doctype html", b"<html")):
        return f"{wrong}: it is a web page, as a download that failed leaves"
    return wrong
