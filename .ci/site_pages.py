"""A hook of mkdocs: pages that lie beside the code, and the commands' own --help, are shown on the
site too, without a copy."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from serving import classify, models, settings
from trainer import flags, make_shards
from trainer.analysis import analyze

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"benchmarks.md": "benchmarks/README.md", "changes.md": "CHANGELOG.md"}
PARSERS = (
    flags.parser,
    analyze._parser,
    settings._parser,
    classify._parser,
    models._parser,
    make_shards._parser,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](../docs/", "](")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def commands() -> str:
    """What each command says to --help."""
    os.environ["COLUMNS"] = "100"  # of the lines, for argparse
    parts = ["# Commands\n\nWhat each says to `--help`.\n"]
    for make in PARSERS:
        for parser in with_subcommands(make()):
            depth = "#" * (2 + (" " in parser.prog.removeprefix("python -m ")))
            parts.append(f"{depth} {parser.prog}\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(parts)


def with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()
