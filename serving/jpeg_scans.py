"""How many passes over the picture a JPEG asks for (ITU-T T.81, annex B).

Each scan of a progressive JPEG costs one, however few bytes it has: a file of 250 kB can ask for
seconds of work, one of 20 MB for hours. Encoders write about ten.
"""

import re

MAX_SCANS = 100

_START_OF_SCAN, _END = 0xDA, 0xD9
# In the data of a scan a byte ff is followed by 0, unless it restarts or fills: no marker of ours.
# Nor are reserved ones: decoders pass over them and read on, where a segment of theirs would end
# the search for as long as it claims to be.
_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd9-\xfe])")


def too_many_scans(data: bytes) -> bool:
    """Whether the first picture in `data` has more than MAX_SCANS; what follows it is not read."""
    if data.count(bytes([0xFF, _START_OF_SCAN])) <= MAX_SCANS:
        return False
    scans = at = 0
    while scans <= MAX_SCANS:
        found = _MARKER.search(data, at)
        if found is None or found[1][0] == _END:
            return False
        scans += found[1][0] == _START_OF_SCAN
        at = found.end()
        at += int.from_bytes(data[at : at + 2])  # the segment, a thumbnail in it and all
    return True
