"""The model repository in a folder, as layout.py lays it out; a version never changes again."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.durable import exchange, make_ready, new_folder, replace_file, settle
from serving.errors import (
    BrokenVersion,
    InvalidRequest,
    NotFound,
    PawprintError,
    Unavailable,
    listed,
)
from serving.layout import (
    ANALYSIS,
    ANALYSIS_DIGESTS,
    ANALYSIS_NEXT,
    DEFAULT_ALIAS,
    MANIFEST,
    MANIFEST_DIGEST,
    NAME,
    NUMBER,
    STAGING,
    alias_lines,
    analysis_digests,
    check_name,
    digest_line,
    entries_below,
    file_entry,
    files_below,
    inside,
    name_and_version,
    next_file,
    read_inside,
    version_number,
)
from serving.modelspec import (
    FAMILIARITY_FILE,
    Familiarity,
    FileEntry,
    Findings,
    Manifest,
    RobustnessSummary,
    Trust,
    read_json,
)
from serving.paths import is_dir, is_file
from serving.triton_config import CONFIG, triton_files
from serving.whole_file import names_disk, remove_old

log = logging.getLogger(__name__)

_STALE_STAGING_S = 24 * 3600.0


class Repository:
    """Reads need no lock: a version is seen whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def location(self) -> str:
        """Where it is, as --models takes it."""
        return str(self.root)

    # --- what is there

    def exists(self) -> bool:
        return is_dir(self.root)

    def names(self) -> list[str]:
        """The models that have at least one version, or can't be read, sorted."""
        if not is_dir(self.root):
            return []
        found = (p.name for p in self.root.iterdir() if is_dir(p) and NAME.fullmatch(p.name))
        return sorted(name for name in found if self._holds_some(name))

    def stamps(self) -> dict[str, Hashable]:
        """The names, each with what changes when anything of the model does; None where finding
        that out is a look at the model itself."""
        return dict.fromkeys(self.names())

    def _holds_some(self, name: str) -> bool:
        try:
            return bool(self.versions(name))
        except (OSError, Unavailable):  # whoever reads on meets it again, of this model alone
            return True

    def versions(self, name: str) -> list[int]:
        """Published versions, ascending; none if there is no such model."""
        folder = self.root / check_name(name)
        if not is_dir(folder):
            return []
        try:
            inside = list(folder.iterdir())
        except FileNotFoundError:  # gone since: a training that publishes nothing leaves none
            return []
        return sorted(int(p.name) for p in inside if NUMBER.fullmatch(p.name) and is_dir(p))

    def check_version(self, name: str, version: int) -> None:
        """Raises NotFound, naming those that exist, unless the version is published."""
        versions = self.versions(name)
        if version not in versions:
            if not versions:
                raise NotFound(f"no model {name!r}; models here: {listed(self.names())}")
            raise NotFound(
                f"model {name!r} has no version {version}; newest first: {listed(versions[::-1])}"
            )

    def resolve(self, name: str, reference: str = "") -> int:
        """A version number, an alias, or "": the alias `stable` if there is one, else the newest.

        Raises NotFound, BrokenVersion if that alias, and not another, is malformed.
        """
        if number := version_number(reference):
            self.check_version(name, number)
            return number
        alias = reference or DEFAULT_ALIAS
        named = self._alias_history(name, alias)[:1] if NAME.fullmatch(alias) else []
        versions = self.versions(name)
        if named and named[0] in versions:
            return named[0]
        if reference or not versions:
            self.check_version(name, versions[-1] if versions else 0)
            if named:
                raise NotFound(_names_none(name, alias, named[0]))
            try:
                known = f"aliases: {listed(self.aliases(name))}"
            except BrokenVersion as error:
                known = str(error)
            raise NotFound(f"model {name!r} has no version or alias {reference[:64]!r}; {known}")
        return versions[-1]

    def find(self, text: str) -> tuple[str, int]:
        """Name and number of NAME, NAME/VERSION or NAME/ALIAS, as `resolve`."""
        name, reference = name_and_version(text)
        return name, self.resolve(name, reference)

    def stamp(self, name: str, version: int) -> tuple[tuple[object, ...], ...]:
        """Changes when a file of the version does; () if there is no version. Reads no file."""
        folder = self.root / check_name(name) / str(version)
        found = []
        for file in sorted(files_below(folder)):
            with suppress(FileNotFoundError):  # gone since it was listed
                status = (folder / file).lstat()
                found.append((file, status.st_size, status.st_mtime_ns, status.st_ino))
        return tuple(found)

    # --- whole and unaltered

    def manifest(self, name: str, version: int) -> Manifest:
        """Raises NotFound or BrokenVersion (altered or malformed)."""
        check_name(name)
        try:
            data = self._read(name, version, MANIFEST)
        except BrokenVersion:
            self.check_version(name, version)
            raise
        if self._read(name, version, MANIFEST_DIGEST) != digest_line(data):
            raise BrokenVersion(f"{name}/{version}: {MANIFEST} does not match {MANIFEST_DIGEST}")
        manifest = Manifest.from_json(data)
        if (manifest.name, manifest.version) != (name, version):
            raise BrokenVersion(
                f"{name}/{version}: the manifest is that of {manifest.name}/{manifest.version}"
            )
        return manifest

    def manifest_digest(self, name: str, version: int) -> str:
        """The SHA-256 of manifest.json, in hex. Raises BrokenVersion if it is missing."""
        try:
            return hashlib.sha256(self._read(name, version, MANIFEST)).hexdigest()
        except BrokenVersion as error:
            raise BrokenVersion(f"{name}/{version}: {error}") from error

    def read_file(self, manifest: Manifest, file: str) -> bytes:
        """The content of one file of a version, read once and checked against its digest.

        Raises BrokenVersion.
        """
        where = f"{manifest.name}/{manifest.version}/{file}"
        if file not in manifest.files:
            raise BrokenVersion(f"{where} is not listed in {MANIFEST}")
        entry = manifest.files[file]
        data = self._read_entry(manifest.name, manifest.version, file, entry)
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BrokenVersion(f"{where} is altered: it does not match its digest in {MANIFEST}")
        return data

    def verify(self, name: str, version: int) -> list[str]:
        """Every problem with a version, one sentence each; none if it is whole and unaltered."""
        try:
            manifest = self.manifest(name, version)
        except BrokenVersion as error:
            return [str(error)]
        problems = self._compare(name, version, manifest.files) or self._malformed(manifest)
        listed = {MANIFEST, MANIFEST_DIGEST, *manifest.files}
        for file in sorted(self._files(name, version) - listed):
            if not file.startswith(f"{ANALYSIS}/"):
                problems.append(f"{file} is not part of the version")
        while True:
            stamp = self.stamp(name, version)
            found = self._verify_analysis(name, version)
            if not found or self.stamp(name, version) == stamp:
                return problems + found
            # It was replaced while it was read.

    def _malformed(self, manifest: Manifest) -> list[str]:
        try:
            self.familiarity(manifest)
        except BrokenVersion as error:
            return [str(error)]
        return []

    def _verify_analysis(self, name: str, version: int) -> list[str]:
        stored = {f for f in self._files(name, version) if f.startswith(f"{ANALYSIS}/")}
        if ANALYSIS_DIGESTS not in stored:
            return []  # no analysis, or one that is being uploaded: none that is read
        try:
            files = self._analysis_digests(name, version)
        except BrokenVersion as error:
            return [str(error)]
        extra = sorted(stored - {ANALYSIS_DIGESTS, *files})
        if any(file.startswith(f"{ANALYSIS_NEXT}/") for file in stored):
            files = {
                beside if (beside := next_file(entry)) in stored else file: entry
                for file, entry in files.items()
            }
            extra = []
        problems = self._compare(name, version, files)
        return problems + [f"{file} is not part of the version" for file in extra]

    def verify_to_load(self, name: str, version: int) -> list[str]:
        """As verify, where that downloads nothing: all that is read later is checked again then."""
        return self.verify(name, version)

    def _compare(self, name: str, version: int, files: dict[str, FileEntry]) -> list[str]:
        problems = []
        for file, entry in files.items():
            try:
                if self._entry(name, version, file) != entry:
                    problems.append(f"{file} is altered: it does not match its digest")
            except (BrokenVersion, OSError) as error:
                problems.append(str(error))
        return problems

    def _analysis_digests(self, name: str, version: int) -> dict[str, FileEntry]:
        """Raises BrokenVersion, also for a byte that JSON would forgive."""
        data = self._read(name, version, ANALYSIS_DIGESTS)
        entries = read_json(dict[str, FileEntry], data, ANALYSIS_DIGESTS)
        if analysis_digests(entries) != data:
            raise BrokenVersion(f"{ANALYSIS_DIGESTS} is not as it was written")
        return entries

    # --- the bytes of a version, where this repository has them

    def _read(self, name: str, version: int, file: str) -> bytes:
        """Raises BrokenVersion if it is missing or leads out of the version."""
        return read_inside(self.root / name / str(version), file)

    def _read_entry(self, name: str, version: int, file: str, entry: FileEntry) -> bytes:
        """What is stored as `file`, whose content ought to be `entry`; the caller checks that."""
        return self._read(name, version, file)

    def _entry(self, name: str, version: int, file: str) -> FileEntry:
        """Digest and size of what is stored. Raises BrokenVersion."""
        return file_entry(inside(self.root / name / str(version), file))

    def _files(self, name: str, version: int) -> set[str]:
        """Relative POSIX paths of all that is stored of a version."""
        return files_below(self.root / name / str(version))

    # --- publishing

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A folder beside the versions to write a new one in; removed again at the end."""
        parent = self.root / check_name(name)
        folder = new_folder(parent, STAGING)
        remove_old(parent.glob(f"{STAGING}*"), _STALE_STAGING_S)
        try:
            with names_disk(parent):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # not empty, or another publisher removed it
                parent.rmdir()

    def publish(
        self,
        name: str,
        staging: Path,
        describe: Callable[[int, dict[str, FileEntry]], Manifest],
    ) -> Manifest:
        """Publish what lies in `staging` as the next version, in one rename; returns its manifest.

        `describe` makes the manifest from the version number and the entries of all files. Two
        publishers at once get two numbers: the rename onto an existing version fails, and the loser
        tries the next.
        """
        files = entries_below(staging)
        while True:
            version = self._highest(name) + 1
            manifest = describe(version, files)
            data = manifest.to_json().encode()
            (staging / MANIFEST).write_bytes(data)
            (staging / MANIFEST_DIGEST).write_bytes(digest_line(data))
            make_ready(staging)
            try:
                os.rename(staging, self.root / name / str(version))
            except OSError:
                if not (self.root / name / str(version)).exists():
                    raise
                continue
            settle(self.root / name)
            self.describe_to_triton(name, version)
            return manifest

    def _highest(self, name: str) -> int:
        """Of the numbers that a version has, or had while an alias named it: who calls it by that
        number, or by the alias, must not get another one."""
        numbers = [int(p.name) for p in (self.root / name).iterdir() if NUMBER.fullmatch(p.name)]
        for alias in self._alias_names(name):
            with suppress(BrokenVersion, InvalidRequest):  # of an alias that can't be read
                numbers += self._alias_history(name, alias)
        return max(numbers, default=0)

    def describe_to_triton(self, name: str, published: int) -> None:
        """Write config.pbtxt and labels.txt of the newest version, also if another publishes now.

        `published` is there already, so what fails here is logged: an error would look as if it
        were not.
        """
        written = 0
        try:
            while (newest := max(self.versions(name), default=0)) != written:
                for file, text in triton_files(self.manifest(name, newest)).items():
                    self._write_beside(name, file, text.encode())
                written = newest
        except (PawprintError, OSError) as error:
            log.warning(
                "%s/%d is published, but %s beside it can't be written: %s",
                name, published, CONFIG, error,
            )  # fmt: skip

    def _write_beside(self, name: str, file: str, data: bytes) -> None:
        """Replace a file that lies beside the versions."""
        replace_file(self.root / name / file, data)

    def attach_analysis(self, name: str, version: int, staging: Path) -> None:
        """Make what lies in `staging` the analysis of a version, in one step, whole."""
        self.check_version(name, version)
        folder = self.root / name / str(version)
        entries = entries_below(staging, f"{ANALYSIS}/")
        (staging / Path(ANALYSIS_DIGESTS).name).write_bytes(analysis_digests(entries))
        make_ready(staging)
        if (folder / ANALYSIS).exists():
            exchange(staging, folder / ANALYSIS)  # the old one goes with the staging folder
        else:
            os.rename(staging, folder / ANALYSIS)
        settle(folder)

    def read_analysis(self, name: str, version: int, file: str) -> bytes | None:
        """One file of a version's analysis, checked against its digest; None if there is none.

        Raises NotFound, BrokenVersion.
        """
        entries = self._analysis(name, version)
        return None if entries is None else self._listed(name, version, file, entries)

    def _listed(self, name: str, version: int, file: str, entries: dict[str, FileEntry]) -> bytes:
        """One file of the analysis that these digests are of. Raises BrokenVersion."""
        where = f"{ANALYSIS}/{file}"
        if where not in entries:
            raise BrokenVersion(f"{where} is not listed in {ANALYSIS_DIGESTS}")
        problem = None
        for stored in (where, next_file(entries[where])):
            try:
                data = self._read(name, version, stored)
            except BrokenVersion as error:
                problem = problem or error
                continue
            if hashlib.sha256(data).hexdigest() == entries[where].sha256:
                return data
            problem = problem or BrokenVersion(f"{name}/{version}/{where} is altered")
        assert problem is not None
        raise problem

    def familiarity(self, manifest: Manifest) -> Familiarity | None:
        """What the version's output of that name means; None if it has none.

        Raises NotFound, BrokenVersion.
        """
        if FAMILIARITY_FILE not in manifest.files:
            return None
        data = self.read_file(manifest, FAMILIARITY_FILE)
        return read_json(Familiarity, data, FAMILIARITY_FILE)

    def findings(self, name: str, version: int) -> Findings | None:
        """The headline figures of a version's analysis, all of the same one; None if there is none.

        Raises NotFound, BrokenVersion.
        """
        while (entries := self._analysis(name, version)) is not None:
            try:
                return self._findings(name, version, entries)
            except BrokenVersion:
                if self._analysis(name, version) == entries:
                    raise
                # It was replaced while it was read.
        return None

    def _findings(self, name: str, version: int, entries: dict[str, FileEntry]) -> Findings:
        summary = self._listed(name, version, "summary.json", entries)
        trust = None
        if f"{ANALYSIS}/trust.json" in entries:
            trust = read_json(
                Trust, self._listed(name, version, "trust.json", entries), "trust.json"
            )
        return Findings(
            robustness=read_json(RobustnessSummary, summary, "summary.json"), trust=trust
        )

    def analysis_files(self, name: str, version: int) -> list[str]:
        """What read_analysis can read, sorted. Raises NotFound, BrokenVersion."""
        entries = self._analysis(name, version) or {}
        return sorted(file.removeprefix(f"{ANALYSIS}/") for file in entries)

    def _analysis(self, name: str, version: int) -> dict[str, FileEntry] | None:
        """The entries of its digests; None if there is none. Raises NotFound, BrokenVersion."""
        self.check_version(name, version)
        if ANALYSIS_DIGESTS not in self._files(name, version):
            return None
        return self._analysis_digests(name, version)

    def write_page(self, html: str) -> str:
        """Put index.html at the top of the repository; returns where it is."""
        path = self.root / "index.html"
        replace_file(path, html.encode())
        return str(path)

    # --- aliases

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> version, sorted. Those that name a version that is gone are left out."""
        named, versions = self.named(name), self.versions(name)
        return {alias: version for alias, version in named.items() if version in versions}

    def named(self, name: str) -> dict[str, int]:
        """Alias -> version, sorted, whether or not that is there. Raises BrokenVersion, of all that
        are malformed."""
        found, malformed = self.named_and_malformed(name)
        if malformed:
            raise BrokenVersion("; ".join(malformed.values()))
        return found

    def named_and_malformed(self, name: str) -> tuple[dict[str, int], dict[str, str]]:
        """Alias -> version, as `named`, of those that can be read; the others -> why not."""
        found, malformed = {}, {}
        for alias in sorted(filter(NAME.fullmatch, self._alias_names(check_name(name)))):
            try:
                if history := self._alias_history(name, alias):
                    found[alias] = history[0]
            except BrokenVersion as error:
                malformed[alias] = str(error)
        return found, malformed

    def survey(self, name: str) -> tuple[list[int], dict[str, int], dict[str, str]]:
        """Its versions; alias -> version, of those that can be read; and alias -> why it leads
        nowhere: it is malformed, or the version that it names is gone."""
        named, problems = self.named_and_malformed(name)
        versions = self.versions(name)  # after the aliases: one may just have been published
        gone = {a: _names_none(name, a, v) for a, v in named.items() if v not in versions}
        return versions, named, dict(sorted({**problems, **gone}.items()))

    def promote(self, name: str, version: int, alias: str = DEFAULT_ALIAS) -> None:
        """Let `alias` name `version`. Raises NotFound, BrokenVersion (it does not verify)."""
        if check_name(alias).isdigit():
            raise InvalidRequest(f"an alias can't be a number, got {alias!r}")
        problems = self.verify(name, version)
        if problems:
            said = listed(problems, between="; ")
            raise BrokenVersion(f"{name}/{version} is not promoted: {said}")
        self._change_alias(
            name,
            alias,
            lambda history: history if history[:1] == [version] else [version, *history],
        )

    def rollback(self, name: str, alias: str = DEFAULT_ALIAS) -> int:
        """Let `alias` name again what it named before; returns that version. Raises NotFound,
        BrokenVersion if no server would load it, which would go on with the one that is left."""

        def back(history: list[int]) -> list[int]:
            if len(history) < 2:
                raise NotFound(f"alias {alias!r} of {name!r} has no earlier version to go back to")
            self.check_version(name, history[1])
            if problems := self.verify_to_load(name, history[1]):
                raise BrokenVersion(
                    f"{name}/{history[1]}, which alias {alias!r} named before, is broken: "
                    f"{'; '.join(problems)}; promote another version"
                )
            return history[1:]

        return self._change_alias(name, alias, back)[0]

    def _alias_history(self, name: str, alias: str) -> list[int]:
        data = self._read_alias(check_name(name), check_name(alias))
        if data is None:
            return []
        lines = data.decode(errors="replace").split() or ["0"]
        # No version has another number; the next one would be published beyond it, unseen.
        if not all(line == "0" or NUMBER.fullmatch(line) for line in lines):
            raise BrokenVersion(f"alias {alias!r} of {name!r} is malformed")
        return [int(line) for line in lines]

    def _alias_to_change(self, name: str, alias: str) -> list[int]:
        """Its history, which a change keeps."""
        try:
            return self._alias_history(name, alias)
        except BrokenVersion as error:
            raise BrokenVersion(
                f"{error}; remove {name}/aliases/{alias}, then promote a version"
            ) from error

    def _alias_names(self, name: str) -> list[str]:
        folder = self.root / name / "aliases"
        return [p.name for p in folder.iterdir()] if is_dir(folder) else []

    def _read_alias(self, name: str, alias: str) -> bytes | None:
        path = self.root / name / "aliases" / alias
        return path.read_bytes() if is_file(path) else None

    def _change_alias(
        self, name: str, alias: str, change: Callable[[list[int]], list[int]]
    ) -> list[int]:
        """Replace its history by what `change` makes of it; of two at once the later one stays."""
        before = self._alias_to_change(name, alias)
        after = change(before)
        if after != before:
            replace_file(self.root / name / "aliases" / alias, alias_lines(after))
        return after


def _names_none(name: str, alias: str, version: int) -> str:
    return f"alias {alias!r} of {name!r} names version {version}, which is not there"
