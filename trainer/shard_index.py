"""What a shard holds: where each photo's bytes are in the tar file, and its label.

The format is WebDataset's: members whose names are the same up to the first dot of the last part
are one sample, as 000012.jpg and 000012.cls are.
"""

import json
import re
import tarfile
from contextlib import closing
from dataclasses import astuple, dataclass, field

from serving.photo_formats import ENDINGS
from trainer.errors import InvalidData
from trainer.shard_cache import ShardCache
from trainer.shard_places import Shard
from trainer.tree import one_line

_LABELS = ("cls", "json", "txt")  # the first that a sample has; .txt is often a caption beside .cls
_MAX_LABEL_BYTES = 1 << 20
_MAX_LABEL_LENGTH = 255  # as long as the name of a folder may be
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BLOCK = 512
_JOINED = 1 << 20  # bytes of zeros at most between a file's end and another's beginning
_RULES = 5  # by which an index was made: one by others is not taken from the cache


@dataclass(frozen=True, kw_only=True)
class Sample:
    file: str  # name of the photo's member, or of its label's where there is no photo
    label: str  # as written; empty where there is none
    offset: int  # of the photo's first byte
    size: int
    fault: str | None  # why it can't be used


@dataclass
class _Parts:
    photo: tuple[str, int, int] | None = None
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)  # ending -> name, text


def samples_of(shard: Shard, cache: ShardCache) -> list[Sample]:
    """In the order of the tar file. Raises InvalidData naming the shard, Unavailable."""
    known = cache.index(shard)
    try:
        rules, rows = known  # type: ignore[misc]
        if rules == _RULES:
            names = ("file", "label", "offset", "size", "fault")
            return [Sample(**dict(zip(names, row, strict=True))) for row in rows]
    except (TypeError, ValueError):
        pass  # a damaged file, or one of another version: it is replaced
    samples = [_sample(key, parts) for key, parts in _read(shard).items()]
    cache.keep_index(shard, [_RULES, [astuple(sample) for sample in samples]])
    return samples


def split_name(name: str) -> tuple[str, str] | None:
    """Key and ending of a member's name; None for those that belong to no sample."""
    match = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]+)", name.removeprefix("./"))
    return None if match is None else (match[1], match[2].lower())


def _read(shard: Shard) -> dict[str, _Parts]:
    try:
        if shard.read(0, 6).startswith(_COMPRESSED):
            raise InvalidData(
                f"{shard.location} is compressed; photos are read from anywhere in a shard, so it "
                "must be a plain tar file: decompress it"
            )
        with closing(shard.open()) as file:
            mode = "r:" if file.seekable() else "r|"
            with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
                found = _gather(tar, shard)
                end = tar.offset
        # tarfile takes anything that is no header for the end.
        rest = shard.read(end, _BLOCK + _JOINED)
        if rest[:_BLOCK] != bytes(_BLOCK):
            raise InvalidData(f"{shard.location} is cut off or damaged at byte {end:,}")
        if rest.strip(b"\0"):
            raise InvalidData(
                f"{shard.location} goes on behind its end at byte {end:,}, as where tar files were "
                "joined: keep them as files of their own"
            )
    except OSError as error:
        raise InvalidData(f"{shard.location} can't be read: {error.strerror or error}") from error
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise InvalidData(
            f"{shard.location} is cut off, damaged or no tar file ({error})"
        ) from error
    return found


def _gather(tar: tarfile.TarFile, shard: Shard) -> dict[str, _Parts]:
    found: dict[str, _Parts] = {}
    for member in tar:
        # What is not UTF-8, as of another system, can't be written down with a version as it is.
        file = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        file = file.removeprefix("./")
        name = split_name(file)
        if name is None or not member.isreg() or member.issparse():
            continue
        key, ending = name
        if f".{ending}" in ENDINGS:
            parts = found.setdefault(key, _Parts())
            if parts.photo is not None:
                raise InvalidData(f"{shard.location} has two photos of the key {key}")
            parts.photo = file, member.offset_data, member.size
        elif ending in _LABELS:
            parts = found.setdefault(key, _Parts())
            if ending in parts.labels:
                raise InvalidData(f"{shard.location} has two labels of the key {key}")
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            text = content.read(_MAX_LABEL_BYTES).decode("utf-8-sig", errors="surrogateescape")
            parts.labels[ending] = file, text
    return found


def _sample(key: str, parts: _Parts) -> Sample:
    ending = next((each for each in _LABELS if each in parts.labels), None)
    label, fault = "", None
    if ending is None:
        fault = f"no label: the shard has no {' or '.join(f'{key}.{each}' for each in _LABELS)}"
    else:
        label, fault = _label(*parts.labels[ending], ending)
    if parts.photo is None:
        assert ending is not None
        name = parts.labels[ending][0]
        return Sample(file=name, label=label, offset=0, size=0, fault="a label without a photo")
    file, offset, size = parts.photo
    return Sample(file=file, label=label, offset=offset, size=size, fault=fault)


def _label(name: str, text: str, ending: str) -> tuple[str, str | None]:
    """The label, and why there is none."""
    if ending == "json":
        try:
            value = json.loads(text)["label"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return "", f"no label: {name} has no entry named label"
        if not isinstance(value, str | int) or isinstance(value, bool):
            return "", f"no label: in {name} it is neither a name nor a number"
        text = str(value)
    text = text.strip()
    if not text:
        return "", f"no label: {name} is empty"
    if len(text) > _MAX_LABEL_LENGTH or not one_line(text):
        most = f"at most {_MAX_LABEL_LENGTH} characters"
        return "", f"no label: {name} is not one line of UTF-8 of {most}"
    return text, None
