"""The command `models`: what a model repository holds and a server serves, checks and aliases."""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.models())

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from serving import administration
from serving.commandline import Parser, aligned, fail, print_every_name, reader_may_leave
from serving.copying import copy_version
from serving.errors import (
    BrokenVersion,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PawprintError,
    Unavailable,
)
from serving.launch import interruptible
from serving.layout import DEFAULT_ALIAS
from serving.modelspec import Familiarity, Manifest, Threshold, other_labels
from serving.page import render_page
from serving.repository import Repository
from serving.storage import open_repository
from serving.visible import visible

_READERS = 16  # threads


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    print_every_name()
    try:
        with reader_may_leave():
            if "server" in options:
                options.command(options)
            else:
                options.command(open_repository(options.models, must_exist=True), options)
    except (BrokenVersion, Unavailable, DeadlineExceeded, Overloaded, OSError) as error:
        fail(str(error), status=1)
    except PawprintError as error:
        fail(str(error))


# --- the commands


def _list(repository: Repository, options: argparse.Namespace) -> None:
    rows = _rows(repository)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    lines: list[tuple[object, ...]] = [
        ("MODEL", "VERSION", "ALIASES", "ACCURACY", "PHOTOS", "BACKBONE", "CREATED")
    ]
    for row in rows:
        if "problem" in row:
            advice = row["problem"] if row["version"] is None else "see models verify"
            of = (row["name"], row["version"] or "", row.get("alias", ""))
            lines.append((*of, "broken", "", "", advice))
            continue
        lines.append(
            (
                row["name"],
                row["version"],
                " ".join(row["aliases"]),
                f"{row['accuracy']:.4f}",
                row["photos"],
                row["backbone"],
                row["created"],
            )
        )
    print(aligned(lines))


def _rows(repository: Repository) -> list[dict[str, Any]]:
    """Of all versions, then of aliases that lead nowhere and of models that can't be looked at.
    Read side by side: in a bucket each waits for several answers."""
    with interruptible(), ThreadPoolExecutor(_READERS) as readers:
        names = list(repository.names())
        surveys = readers.map(lambda name: _survey(repository, name), names)
        looks, closed = {}, []
        for name, look in zip(names, surveys, strict=True):
            if isinstance(look, OSError):
                closed.append({"name": name, "version": None, "problem": str(look)})
            else:
                looks[name] = look
        versions = [
            (name, version, named) for name, (found, named, _) in looks.items() for version in found
        ]
        rows = readers.map(lambda version: _summary(repository, *version), versions)
        astray = [
            {"name": name, "version": None, "alias": alias, "problem": why}
            for name, (_, _, problems) in looks.items()
            for alias, why in problems.items()
        ]
        return [row for row in rows if row is not None] + astray + closed


def _survey(
    repository: Repository, name: str
) -> tuple[list[int], dict[str, int], dict[str, str]] | OSError:
    """The error of one model is none of the others'."""
    try:
        return repository.survey(name)
    except OSError as error:
        return error


def _summary(
    repository: Repository, name: str, version: int, named: Mapping[str, int]
) -> dict[str, Any] | None:
    """None where it has been removed since it was found."""
    try:
        manifest = repository.manifest(name, version)
    except BrokenVersion as error:
        return {"name": name, "version": version, "problem": str(error)}
    except NotFound:
        return None
    aliases = [alias for alias, target in named.items() if target == version]
    metrics = manifest.variants["fp32"].metrics
    return {
        "name": name,
        "version": version,
        "aliases": aliases,
        "accuracy": metrics.accuracy,
        "photos": metrics.photos,
        "backbone": manifest.backbone,
        "created": manifest.created,
    }


def _show(repository: Repository, options: argparse.Namespace) -> None:
    name, version = repository.find(options.model)
    manifest = repository.manifest(name, version)
    if options.json:
        print(manifest.to_json(), end="")
        return
    thresholds = _thresholds(repository, name, version)
    familiarity = _familiarity(repository, manifest)
    named, _ = repository.named_and_malformed(name)
    aliases = [alias for alias, target in named.items() if target == version]
    size = manifest.preprocessing.size
    ways = ", seen both ways" if manifest.configuration.get("mirror") else ""
    lines = [
        ("version", f"{name}/{version}"),
        ("aliases", " ".join(aliases)),
        ("labels", ", ".join(manifest.labels)),
        ("backbone", manifest.backbone),
        ("created", manifest.created),
        ("input", f"{size} x {size} pixels, {manifest.preprocessing.interpolation}{ways}"),
        ("data set", f"sha256 {manifest.dataset.digest}"),
    ]
    if familiarity is not None:
        told = f"compared with {familiarity.photos:,} photos; {familiarity.threshold:g} or less"
        lines.append(("familiarity", f"{told} is unfamiliar"))
    for precision, variant in manifest.variants.items():
        metrics = variant.metrics
        lines += [
            (
                f"accuracy {precision}",
                f"{metrics.accuracy:.4f} (95 %: {metrics.accuracy_low:.4f} to "
                f"{metrics.accuracy_high:.4f}) on {metrics.photos} photos",
            ),
            (f"ECE {precision}", f"{metrics.ece:.4f}"),
        ]
        shown = [t for t in thresholds if t.precision == precision]
        if shown:
            rights = (f"{t.probability:g} on {100 * t.accuracy:.3g} % are right" for t in shown)
            lines.append((f"trust {precision}", f"from a probability of {', of '.join(rights)}"))
        if familiarity is not None and precision in familiarity.unfamiliar:
            share = f"{100 * familiarity.unfamiliar[precision]:.3g} % of the test photos"
            lines.append((f"unfamiliar {precision}", share))
    for file, entry in manifest.files.items():
        lines.append((file, f"{entry.size:,} bytes, sha256 {entry.sha256}"))
    print(aligned(lines))


def _thresholds(repository: Repository, name: str, version: int) -> tuple[Threshold, ...]:
    """None of them where the analysis is damaged, of which `models verify` tells."""
    with suppress(BrokenVersion):
        findings = repository.findings(name, version)
        if findings is not None and findings.trust is not None:
            return findings.trust.thresholds
    return ()


def _familiarity(repository: Repository, manifest: Manifest) -> Familiarity | None:
    """None too where its file is damaged."""
    with suppress(BrokenVersion):
        return repository.familiarity(manifest)
    return None


def _verify(repository: Repository, options: argparse.Namespace) -> None:
    problems = {}
    if options.model:
        for name, version in [repository.find(model) for model in options.model]:
            problems[f"{name}/{version}"] = repository.verify(name, version)
    else:
        for name in repository.names():
            try:
                for version in repository.versions(name):
                    with suppress(NotFound):  # removed since it was found
                        found = repository.verify(name, version)
                        if found:
                            repository.check_version(name, version)
                        problems[f"{name}/{version}"] = found
            except OSError as error:  # of this model, which is none of the others'
                problems[name] = [str(error)]
    if options.json:
        print(json.dumps(problems, indent=2, ensure_ascii=False))
    else:
        for reference, found in problems.items():
            print(visible(f"{reference}: {'; '.join(found) or 'whole and unaltered'}"))
        if not problems:  # as where a bucket's prefix has a slip
            print(f"no version in {repository.location}")
    if any(problems.values()):
        sys.exit(1)


def _promote(repository: Repository, options: argparse.Namespace) -> None:
    if "/" not in options.model:
        raise InvalidRequest(f"say which version: models promote {options.model}/VERSION")
    name, version = repository.find(options.model)
    before = _target(repository, name, options.alias)
    repository.promote(name, version, options.alias)
    _report(repository, options, name, before, version)


def _rollback(repository: Repository, options: argparse.Namespace) -> None:
    before = _target(repository, options.model, options.alias)
    version = repository.rollback(options.model, options.alias)
    _report(repository, options, options.model, before, version)


def _copy(repository: Repository, options: argparse.Namespace) -> None:
    name, version = repository.find(options.model)
    copied = copy_version(repository, name, version, open_repository(options.to))
    if options.json:
        print(json.dumps({"name": name, "version": copied}))
    else:
        print(f"{name}/{version} is {name}/{copied} in {options.to}")


def _page(repository: Repository, options: argparse.Namespace) -> None:
    print(repository.write_page(render_page(repository)))


def _target(repository: Repository, name: str, alias: str) -> int | None:
    return repository.named_and_malformed(name)[0].get(alias)


def _report(
    repository: Repository,
    options: argparse.Namespace,
    name: str,
    before: int | None,
    version: int,
) -> None:
    if options.json:
        print(json.dumps({"name": name, "alias": options.alias, "version": version}))
        return
    print(f"{options.alias} of {name} is now version {version}")
    if before is None:
        return
    with suppress(PawprintError, OSError):  # the alias is moved, whatever can be read now
        old, new = (repository.manifest(name, each) for each in (before, version))
        if said := other_labels(old, new):
            print(visible(said))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if more:
        model = getattr(options, "model", None)
        lacks_version = isinstance(model, str) and "/" not in model
        hint = ""
        if lacks_version and more[0].isdigit() and options.command is not _rollback:
            hint = f"; write {model}/{more[0]}"
        parser.error(f"unrecognized arguments: {' '.join(more)}{hint}")
    return options


def _parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument(
        "--models",
        default=os.environ.get("PAWPRINT_SERVE_MODELS", "models"),
        metavar="LOCATION",
        help="the model repository: a folder, or s3://, gs://, az:// with a bucket and a prefix "
        "(default: PAWPRINT_SERVE_MODELS, else models)",
    )
    machine = Parser(add_help=False)
    machine.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser = Parser(
        prog="models",
        description="Look after a model repository, and the versions that a server has loaded.",
        epilog="Status 0: done. 1: a version is broken; or a bucket or a server does not answer, "
        "which may pass. 2: wrong arguments, or no such version.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common, machine], help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    def add_remote(name: str, command: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[machine], help=help, description=help)
        sub.add_argument(
            "--server",
            required=True,
            metavar="HOST:PORT",
            help="a server's AdminService: serve --admin-port",
        )
        sub.set_defaults(command=command)
        return sub

    add("list", _list, "List every version with its aliases and accuracy.")
    add("show", _show, "Show one version in full.").add_argument("model", metavar="NAME[/VERSION]")
    add("verify", _verify, "Check every file against its digest; without names, everything.")
    commands.choices["verify"].add_argument("model", nargs="*", metavar="NAME[/VERSION]")
    promote = add("promote", _promote, "Point an alias at a version, once it is verified.")
    promote.add_argument("model", metavar="NAME/VERSION")
    rollback = add("rollback", _rollback, "Point an alias at the version that it named before.")
    rollback.add_argument("model", metavar="NAME")
    for sub in (promote, rollback):
        sub.add_argument(
            "--alias", default=DEFAULT_ALIAS, help="which alias (default: %(default)s)"
        )
    copy = add("copy", _copy, "Copy a version, with its analysis, to another repository.")
    copy.add_argument("model", metavar="NAME[/VERSION]")
    copy.add_argument("--to", required=True, metavar="LOCATION", help="the other repository")
    add("page", _page, "Write index.html: all versions side by side, linked to their reports.")
    load = add_remote(
        "load",
        administration.load,
        "Tell a server to load a version, and keep it; without a version, to look at the "
        "repository now.",
    )
    unload = add_remote(
        "unload", administration.unload, "Tell a server to unload a version, or all of a model."
    )
    for sub in (load, unload):
        sub.add_argument("model", metavar="NAME[/VERSION]")
    add_remote(
        "status", administration.status, "Show what a server has loaded, and what it refuses."
    )
    return parser
