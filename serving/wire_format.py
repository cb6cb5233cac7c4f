"""Protobuf's wire format, as far as those need it who look at bytes that are not yet parsed.

https://protobuf.dev/programming-guides/encoding
"""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
FIXED = {FIXED64: 8, FIXED32: 4}  # bytes


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at that place, and where the next one is. Raises IndexError, ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than 64 bits at byte {at}")
