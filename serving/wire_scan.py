"""What a message would cost to parse, seen from its bytes before it is parsed.

Parsed, an empty part of two bytes becomes an object of a hundred: a message of nothing else would
take forty times its size. So parts are counted first, down through the messages within messages.
"""

from typing import Any

from serving.errors import InvalidRequest
from serving.wire_format import FIXED, LENGTH, VARINT, varint

TEXT = "the message can't be parsed: it is not one that this method takes"
# Fewer bytes than these can't cost much, whatever they hold.
SMALL_BYTES = 64 * 1024
# As many parts as a message may have, and one more for each so many of its bytes.
_PARTS, _BYTES_A_PART = 4096, 2048

# By number: the fields of a message within, or None: packed numbers of any length, each of which
# takes time, and up to 8 bytes.
Fields = dict[int, "Fields | None"]


def fields_of(descriptor: Any) -> Fields:
    """Those fields of a message type whose content is made of parts. The type must not hold itself,
    as none here does."""
    fields: Fields = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            fields[field.number] = fields_of(field.message_type)
        elif field.is_repeated and field.cpp_type in (
            *(field.CPPTYPE_INT32, field.CPPTYPE_UINT32, field.CPPTYPE_BOOL),
            *(field.CPPTYPE_INT64, field.CPPTYPE_UINT64, field.CPPTYPE_ENUM),
        ):
            fields[field.number] = None
    return fields


def check_parts(data: bytes, fields: Fields) -> None:
    """Raises InvalidRequest if the message has too many parts for its size, or is none at all."""
    if len(data) <= SMALL_BYTES:
        return
    most = _PARTS + len(data) // _BYTES_A_PART
    try:
        fits = _fits(data, fields, most)
    except (IndexError, ValueError) as error:
        raise InvalidRequest(TEXT) from error
    if not fits:
        raise InvalidRequest(
            f"the message has more than {most:,} fields and elements in its {len(data):,} bytes, "
            "which no call needs"
        )


def _fits(data: bytes, fields: Fields, most: int) -> bool:
    within = [(0, len(data), fields)]
    while within:
        at, end, fields = within.pop()
        while at < end:
            most -= 1
            if most < 0:
                return False
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = varint(data, at - 1)
            kind = tag & 7
            if kind == LENGTH:
                size = data[at]
                at += 1
                if size >= 0x80:
                    size, at = varint(data, at - 1)
                inner = fields.get(tag >> 3, _NO_PARTS)
                if inner is None:
                    most -= size
                elif inner is not _NO_PARTS:
                    within.append((at, at + size, inner))
                at += size
            elif kind == VARINT:
                _, at = varint(data, at)
            else:
                at += FIXED[kind] if kind in FIXED else _no_message()
        if at != end:
            _no_message()
    return most >= 0


def _no_message() -> int:
    raise ValueError("not the bytes of a message")


_NO_PARTS: Fields = {}
