"""Where everything lies in a model repository, and its small files, byte by byte.

<root>/cats/1/manifest.json     what the version is, with the digest of every other file
<root>/cats/1/manifest.sha256   the manifest's own digest, as `sha256sum -c` reads it
<root>/cats/1/model.onnx ...
<root>/cats/1/analysis/         added later by analyze, as a whole, with digests.json of its own
<root>/cats/1/analysis/.next/   in a bucket, while a newer one replaces it or if that was cut off:
                                files that may not lie under their own names yet, by their digests
<root>/cats/aliases/stable      the version it names, and beneath it those it named before
<root>/cats/config.pbtxt        with labels.txt: how Triton may serve the newest version
<root>/cats/.staging-*          a publication under way, or one that was killed: never served
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path, PurePosixPath

from serving.errors import BrokenVersion, InvalidRequest
from serving.modelspec import FileEntry
from serving.paths import exists, is_file

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
ANALYSIS = "analysis"
ANALYSIS_DIGESTS = "analysis/digests.json"
ANALYSIS_NEXT = "analysis/.next"
DEFAULT_ALIAS = "stable"
STAGING = ".staging-"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def check_name(name: str) -> str:
    """The name, if it may be one of a model or an alias. Raises InvalidRequest."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"a name has 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit; "
            f"got {name!r}"
        )
    return name


def version_number(reference: str) -> int:
    """The number that a reference to a version is; 0 where it is none that a version can have."""
    is_number = reference.isascii() and reference.isdigit() and len(reference) < 10
    return int(reference) if is_number else 0


def name_and_version(text: str) -> tuple[str, str]:
    """NAME or NAME/VERSION as the two; "" for a version that is not named. Raises InvalidRequest
    for one that is empty, as of a shell's variable that is not set: it stands for no choice."""
    name, slash, reference = text.partition("/")
    if slash and not reference:
        raise InvalidRequest(f"no version follows the slash of {text!r}")
    return name, reference


def files_below(folder: Path) -> set[str]:
    """Relative POSIX paths of all that is not a folder; a link to a folder counts as a file."""
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_symlink() or not p.is_dir()
    }


def file_entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, size=path.stat().st_size)


def entries_below(folder: Path, below: str = "") -> dict[str, FileEntry]:
    """Of all of files_below, sorted, under these names with `below` before each."""
    return {below + file: file_entry(folder / file) for file in sorted(files_below(folder))}


def digest_line(data: bytes) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode()


def analysis_digests(entries: dict[str, FileEntry]) -> bytes:
    value = {file: dataclasses.asdict(entries[file]) for file in sorted(entries)}
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def next_file(entry: FileEntry) -> str:
    return f"{ANALYSIS_NEXT}/{entry.sha256}"


def alias_lines(history: list[int]) -> bytes:
    return "".join(f"{version}\n" for version in history).encode()


def contained(file: str) -> str:
    """A path that a manifest lists, if it stays within its version. Raises BrokenVersion."""
    pure = PurePosixPath(file)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise BrokenVersion(f"{file!r} leads out of the version")
    return file


def inside(folder: Path, file: str) -> Path:
    """The path of a file that is listed in a manifest, if it lies in the version's own folder."""
    path = folder / contained(file)
    if not path.is_symlink() and not is_file(path):
        raise BrokenVersion(f"{file} is {'no file' if exists(path) else 'missing'}")
    if path.is_symlink() or folder.resolve() not in path.resolve().parents:
        raise BrokenVersion(f"{file!r} leads out of the version")
    return path


def read_inside(folder: Path, file: str) -> bytes:
    try:
        return inside(folder, file).read_bytes()
    except OSError as error:
        raise BrokenVersion(f"{file} can't be read: {error}") from error
