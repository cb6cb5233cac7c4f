"""Photos and messages to break, and the ways to break them. Seeded: the same fault comes again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from PIL import Image

from serving.wire_format import length_delimited
from tests.photos import drawing, encode

Generator = np.random.Generator
HEIC = Path(__file__).parents[1] / "serving" / "heic"

# What a careless or hostile caller writes into a field.
INTEGERS = (0, 1, -1, 2, 255, 256, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
TEXTS = (
    *("", "pets", "1", "-1", "stable", "../../etc/passwd", "image", "BYTES", "UINT8", "FP32", "\0"),
    *("🐈" * 100, "x" * 70_000, "timeout", "classification", "9" * 40),
)
FLOATS = (0.0, -1.0, 1e308, float("nan"), float("inf"))


def photos() -> list[bytes]:
    """Small ones of every allowed format in every mode that it has, with EXIF, animated, and
    some of formats that are not allowed."""
    image = drawing(48, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [drawing(48, 40, seed=1)]}
    kinds = [
        ("JPEG", image, {"quality": 90}),
        ("JPEG", image, {"progressive": True, "exif": exif}),
        ("JPEG", image.convert("L"), {}),
        ("JPEG", image.convert("CMYK"), {}),
        ("PNG", image, {"exif": exif}),
        ("PNG", image.convert("RGBA"), {}),
        ("PNG", image.convert("P"), {"transparency": 0}),
        ("PNG", image.convert("1"), {}),
        ("PNG", Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257), {}),
        ("WEBP", image, {"exif": exif}),
        ("WEBP", image.convert("RGBA"), {"lossless": True}),
        ("WEBP", image, frames),
        ("GIF", image.convert("P"), {}),
        ("GIF", image, frames),
        ("BMP", image, {}),
        ("BMP", image.convert("P"), {}),
        ("BMP", image.convert("1"), {}),
        ("AVIF", image, {"exif": exif}),
        ("AVIF", image.convert("RGBA"), {}),
        ("TIFF", image, {}),
        ("TIFF", image, {"compression": "tiff_lzw"}),
        ("PPM", image, {}),
        ("ICO", image, {}),
    ]
    heic = (path.read_bytes() for path in sorted(HEIC.glob("*.heic")))
    return [*(encode(picture, kind, **options) for kind, picture, options in kinds), *heic]


def broken(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    """A copy that is altered in one to three ways."""
    for _ in range(generator.integers(1, 4)):
        data = _WAYS[generator.integers(len(_WAYS))](data, others, generator)
    return data


def scrambled(message: Message, generator: Generator, share: float = 0.3) -> None:
    """Sets about that share of the fields to what nobody should send, at every depth."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type and field.message_type.GetOptions().map_entry:
            values = getattr(message, field.name)
            if generator.random() < share:
                key = _text(generator)
                if field.message_type.fields_by_name["value"].message_type:
                    scrambled(values[key], generator, share=1.0)
        elif field.message_type:
            if field.is_repeated:
                if generator.random() < share:
                    getattr(message, field.name).add()
                parts = getattr(message, field.name)
            else:
                parts = [getattr(message, field.name)]
            if field.is_repeated or message.HasField(field.name) or generator.random() < share:
                for part in parts:
                    scrambled(part, generator, share)
        elif generator.random() < share:
            if field.is_repeated:
                count = int(generator.integers(0, 5))
                del getattr(message, field.name)[:]
                getattr(message, field.name).extend(_value(field, generator) for _ in range(count))
            else:
                setattr(message, field.name, _value(field, generator))


def swollen(message: Message, size: int) -> Iterator[bytes]:
    """The message once for each of its fields, at every depth: with so many bytes of what is least,
    empty elements or zeros, in that field."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        rest = type(message)()
        rest.CopyFrom(message)
        rest.ClearField(field.name)
        is_map = field.message_type and field.message_type.GetOptions().map_entry
        if field.message_type and not is_map:
            for part in list(value)[:1] if field.is_repeated else [value]:
                for inner in swollen(part, size):
                    yield rest.SerializeToString() + length_delimited(field.number, inner)
        if field.is_packed or field.type in (field.TYPE_BYTES, field.TYPE_STRING):
            yield rest.SerializeToString() + length_delimited(field.number, bytes(size))
        if not field.is_packed:
            delimited = field.message_type or field.type in (field.TYPE_BYTES, field.TYPE_STRING)
            element = bytes([field.number << 3 | (2 if delimited else 0), 0])
            yield message.SerializeToString() + element * (size // len(element))


# --- of bytes


def _flip(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    """Up to 16 bits anywhere."""
    return _flipped(data, len(data), int(generator.integers(1, 17)), generator)


def _flip_header(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    """Up to 4 bits of the first 64 bytes, where sizes, modes and lengths stand."""
    return _flipped(data, min(64, len(data)), int(generator.integers(1, 5)), generator)


def _set(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    """Two or four bytes to all ones or zeros: a length or a size that is extreme."""
    width = int(generator.choice([2, 4]))
    at = int(generator.integers(0, max(1, len(data) - width)))
    return data[:at] + bytes([int(generator.choice([0, 255]))]) * width + data[at + width :]


def _cut(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    return data[: generator.integers(0, len(data) + 1)]


def _remove(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    start, end = sorted(generator.integers(0, len(data) + 1, 2))
    return data[:start] + data[min(end, start + 64) :]


def _repeat(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    start, end = sorted(generator.integers(0, len(data) + 1, 2))
    return data[:end] + data[start:]


def _splice(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    """The beginning of one, the end of another."""
    other = others[generator.integers(len(others))]
    return (
        data[: generator.integers(0, len(data) + 1)]
        + (other[generator.integers(0, len(other) + 1) :])
    )


def _noise(data: bytes, others: Sequence[bytes], generator: Generator) -> bytes:
    at = int(generator.integers(0, len(data) + 1))
    return data[:at] + generator.bytes(int(generator.integers(1, 64))) + data[at:]


_WAYS = (_flip, _flip_header, _set, _cut, _remove, _repeat, _splice, _noise)


def _flipped(data: bytes, within: int, bits: int, generator: Generator) -> bytes:
    if not within:
        return data
    changed = bytearray(data)
    for at in generator.integers(0, within, bits):
        changed[at] ^= 1 << generator.integers(0, 8)
    return bytes(changed)


# --- of fields


def _text(generator: Generator) -> str:
    return TEXTS[generator.integers(len(TEXTS))]


def _value(field: FieldDescriptor, generator: Generator) -> object:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = _text(generator)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return FLOATS[generator.integers(len(FLOATS))]
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return bool(generator.integers(2))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return int(generator.choice([0, 1, 2, 7, 2**31 - 1]))
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[kind]
    return min(max(INTEGERS[generator.integers(len(INTEGERS))], low), high)
