"""The bytes of a photo, of which Pillow may read so many parts and no more.

It goes through segments, chunks and blocks one by one in Python, with the interpreter locked: 20 MB
of empty ones are ten seconds in which every call waits. Most photos have some hundred parts.
"""

import io

from serving.errors import InvalidImage

# As many reads as any photo may take, and one more for each so many of its bytes. It takes three
# for each chunk of a PNG, of which encoders write one for 8 KiB, and some for 1; one for each byte
# that fills up a segment of a JPEG; and two for each 50 to 110 bytes of a GIF's XMP, as characters
# stand for lengths there: Photoshop writes a MB of it, with the names of all that went into it.
_READS, _BYTES_A_READ = 50_000, 500
# What Pillow takes as often as it comes, by how a photo begins: of EXIF segments it copies all that
# came before, each colour profile it unpacks, to a MiB. One is enough.
_REPEATED = {
    b"\xff\xd8": (b"Exif\0\0", "EXIF segments"),
    b"\x89PNG": (b"iCCP", "colour profiles"),
}
_MOST_REPEATED = 100  # for pictures may follow the first


class PhotoParts(io.BytesIO):
    """Raises InvalidImage where a photo has too many."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)
        self._left = _READS + len(data) // _BYTES_A_READ
        for start, (mark, name) in _REPEATED.items():
            if data.startswith(start) and data.count(mark) > _MOST_REPEATED:
                raise InvalidImage(f"the photo has more than {_MOST_REPEATED} {name}")

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise InvalidImage(f"the photo has too many parts for its {self._size:,} bytes")
        return super().read(size)
