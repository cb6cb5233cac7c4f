"""Which kinds of file are photos, and what others are. A client without NumPy asks, too."""

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# How the names of their files end, in lower case; an MPO is a JPEG that others follow.
ENDINGS = frozenset(
    end for end, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")
)

# What else lies among photos: at which byte, what stands there, what it is.
_OTHERS = (
    (4, b"ftyphei", "HEIC"), (4, b"ftyphev", "HEIC"), (4, b"ftypmif1", "HEIC"),
    (4, b"ftypavi", "AVIF"), (4, b"ftypcrx", "a camera's raw file"), (4, b"ftyp", "a video"),
    (0, b"II*\0", "TIFF or a camera's raw file"), (0, b"MM\0*", "TIFF or a camera's raw file"),
    (0, b"\xff\x0a", "JPEG XL"), (0, b"\0\0\0\x0cJXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"),
    (0, b"8BPS", "a Photoshop file"), (0, b"%PDF", "PDF"),
)  # fmt: skip
_STARTS_LOOKED_AT = 512


def not_a_photo(data: bytes) -> str:
    """What is wrong with bytes that no decoder of FORMATS knows, and what helps."""
    wrong = f"not an image in one of the formats {', '.join(FORMATS)}"
    for place, magic, kind in _OTHERS:
        if data.startswith(magic, place):
            return f"{wrong}: it is {kind}; " + (
                "its frames may be saved as JPEG" if kind == "a video" else "save it as JPEG"
            )
    start = data[:_STARTS_LOOKED_AT].lstrip().lower()
    if b"<svg" in start:
        return f"{wrong}: it is SVG; save it as PNG"
    if start.startswith((b"<!doctype html", b"<html")):
        return f"{wrong}: it is a web page, as a download that failed leaves"
    return wrong
