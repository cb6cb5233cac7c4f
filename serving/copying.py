"""A version copied from one repository to another: from a folder to a bucket, or back."""

import dataclasses
from pathlib import Path

from serving.errors import BrokenVersion, PawprintError, Unavailable
from serving.modelspec import FileEntry, Manifest
from serving.repository import Repository


def copy_version(source: Repository, name: str, version: int, target: Repository) -> int:
    """Publish it in `target`, as the next version there, with its analysis; returns that number.

    If it is there already no second copy is made, so that a copy that was cut off can be repeated.
    Raises NotFound, BrokenVersion if it is not whole and unaltered, and Unavailable, which says
    so if it is published there by then.
    """
    problems = source.verify(name, version)
    if problems:
        raise BrokenVersion(f"{name}/{version} is not copied: {'; '.join(problems)}")
    manifest = source.manifest(name, version)

    def describe(number: int, files: dict[str, FileEntry]) -> Manifest:
        return dataclasses.replace(manifest, version=number, files=files)

    copied = _already_there(manifest, target)
    if copied is None:
        with target.staging(name) as folder:
            for file in manifest.files:
                _write(folder / file, source.read_file(manifest, file))
            copied = target.publish(name, folder, describe).version
    try:
        _copy_analysis(source, name, version, target, copied)
    except (PawprintError, OSError) as error:
        raise Unavailable(
            f"{name}/{version} is {name}/{copied} in {target.location} now, but its analysis is "
            f"not there: {error}"
        ) from error
    return copied


def _already_there(manifest: Manifest, target: Repository) -> int | None:
    """The newest whole version in `target` that differs from it in its number alone."""
    for number in reversed(target.versions(manifest.name)):
        try:
            there = target.manifest(manifest.name, number)
            alike = dataclasses.replace(there, version=manifest.version) == manifest
            if alike and not target.verify_to_load(manifest.name, number):
                return number
        except BrokenVersion:
            continue
    return None


def _copy_analysis(
    source: Repository, name: str, version: int, target: Repository, copied: int
) -> None:
    analysis = source.analysis_files(name, version)
    if not analysis:
        return
    with target.staging(name) as folder:
        for file in analysis:
            data = source.read_analysis(name, version, file)
            assert data is not None  # it is listed
            _write(folder / file, data)
        target.attach_analysis(name, copied, folder)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
