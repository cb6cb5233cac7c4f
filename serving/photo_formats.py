"""Which kinds of file are photos. A client without NumPy asks, too."""

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# How the names of their files end, in lower case; an MPO is a JPEG that others follow.
ENDINGS = frozenset(
    end for end, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")
)
