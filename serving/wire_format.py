"""Protobuf's wire format, as far as those need it who look at bytes that are not yet parsed.

https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator

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


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, int]]:
    """Number and value of each field, an int or the bytes of any other, and where it ends.

    Raises IndexError, ValueError where it is no message.
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, at = varint(message, at)
            yield number, value, at
            continue
        if wire_type == LENGTH:
            length, at = varint(message, at)
        elif wire_type in FIXED:
            length = FIXED[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if at + length > len(message):
            raise ValueError("it ends in the middle of a field")
        yield number, message[at : at + length], at + length
        at += length


def length_delimited(number: int, content: bytes) -> bytes:
    """A field that holds these bytes."""
    return _written(number << 3 | LENGTH) + _written(len(content)) + content


def _written(value: int) -> bytes:
    """As varint reads it."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*written, value))
