"""What the pages say of our commands, read by the commands' own parsers, and of our client."""

import argparse
import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serving import channel, classify, models, settings
from tests.conftest import ROOT, Running
from tests.environments import environment_with
from tests.photos import jpeg
from tests.tiny import LABELS
from trainer import flags
from trainer.analysis import analyze

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {
    "analyze": analyze._parser,
    "classify": classify._parser,
    "models": models._parser,
    "serve": settings._parser,
    "train": flags.parser,
}
MODULES = {"trainer.train": "train", "trainer.analysis.analyze": "analyze"}


def commands(page: str) -> list[list[str]]:
    """Our commands in the shell blocks of a page, each as its words."""
    found = []
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            command = ours(shlex.split(line, comments=True))
            if command:
                found.append(command)
    return found


def ours(words: list[str]) -> list[str]:
    """The words from our command on; none if the line starts another one."""
    while words and re.match(r"\w+=", words[0]):  # PAWPRINT_TOKEN=... classify
        words = words[1:]
    if not words:
        return []
    name = Path(words[0]).name
    if name in PARSERS:
        return [name, *words[1:]]
    if name == "torchrun":
        if "--no-python" in words:
            return words[words.index("--no-python") + 1 :]
        module = words.index("-m") + 1
        return [MODULES[words[module]], *words[module + 1 :]]
    if words[:2] == ["docker", "run"]:
        (image,) = [n for n, word in enumerate(words) if re.match(r"pawprint-(train|serve)", word)]
        return words[image + 1 :]
    return []


def unknown_to(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    """An ellipsis stands for whatever else is wanted: then only what is there must be known."""
    if "..." in words:
        known = {flag for action in parser._actions for flag in action.option_strings}
        return not {word.partition("=")[0] for word in words if word.startswith("--")} <= known
    try:
        parser.parse_args(words)
    except SystemExit:
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_can_be_given(page: Path, capsys: pytest.CaptureFixture) -> None:
    for name, *words in commands(page.read_text()):
        wrong = unknown_to(PARSERS[name](), words)
        assert not wrong, f"{shlex.join([name, *words])}: {capsys.readouterr().err}"


@pytest.mark.parametrize("name", ["analyze", "classify", "serve", "train"])
def test_every_example_of_help_can_be_given(name: str, capsys: pytest.CaptureFixture) -> None:
    help_text = PARSERS[name]().format_help()
    lines = help_text.partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    assert lines
    for line in lines:
        given, *words = ours(shlex.split(line, comments=True))
        assert given == name and not unknown_to(PARSERS[name](), words), capsys.readouterr().err


def test_the_commands_of_the_pages_are_found() -> None:
    found = [words for page in PAGES for words in commands(page.read_text())]
    assert {name for name, *_ in found} == PARSERS.keys()
    for command in (
        "models promote pets/2",
        "classify ... --shard 3/8",
        "classify s3://bucket/photos --out s3://bucket/results.parquet --model pets "
        "--address dns:///pawprint-headless:50051 --in-flight 64",
        "train --data /data --name pets --out /models",
        "train --data photos --name pets --checkpoints state",
        "classify photo.jpg",
    ):
        assert command.split() in found


def test_every_flag_of_train_is_explained() -> None:
    text = (ROOT / "docs/training.md").read_text()
    assert [flag for flag in own_flags("train") if not says(text, flag)] == []


@pytest.mark.parametrize("name", ["analyze", "classify", "serve"])
def test_every_flag_of_the_other_commands_stands_on_a_page(name: str) -> None:
    text = "".join(page.read_text() for page in PAGES if page.name != "README.md")
    assert [flag for flag in own_flags(name) if not says(text, flag)] == []


def own_flags(name: str) -> list[str]:
    """But for --help, and for --no-int8 and its like, which undo another one."""
    names = [flag for action in PARSERS[name]()._actions for flag in action.option_strings]
    return [n for n in names if n not in ("-h", "--help") and not n.startswith("--no-")]


def says(text: str, flag: str) -> bool:
    """As a flag or, as in a file of settings, by the setting's name."""
    setting = flag.removeprefix("--").replace("-", "_")
    return re.search(rf"{flag}(?![\w-])|`{setting}`", text) is not None


@pytest.mark.parametrize("folder", ["serving", "trainer", "trainer/analysis"])
def test_the_map_of_the_code_names_every_file_once(folder: str) -> None:
    page = (ROOT / "docs/code.md").read_text()
    (section,) = re.findall(rf"^## {folder}/\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    rows = [line for line in section.splitlines() if line.startswith("|")]
    named = re.findall(r"`([^`]+)`", "".join(row.split("|")[2] for row in rows))
    files = [path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"]
    packages = [f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")]
    assert sorted(named) == sorted(files + [p for p in packages if p != "analysis/"])


async def test_the_programs_of_the_clients_page_run(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for photo in ("cat.jpg", "dog.jpg", "holiday/beach.jpg"):
        Path(photo).parent.mkdir(exist_ok=True)
        Path(photo).write_bytes(jpeg())
    page = (ROOT / "docs/client.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    alone = [p for p in programs if "ca.pem" not in p and "fastapi" not in p]
    here = [program.replace("localhost:50051", running.address) for program in alone]
    assert len(here) == 6
    for program in here:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "error", "-c", program],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")


async def test_the_web_service_of_the_clients_page_answers(
    running: Running, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    packages = ("fastapi", "httpx", "python-multipart", *the_extra("client"))
    folder = environment_with(request.config.cache, "fastapi", *packages)
    page = (ROOT / "docs/client.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (program,) = [program for program in programs if "fastapi" in program]
    program = program.replace("localhost:50051", running.address) + ASKING
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    done = await asyncio.to_thread(
        subprocess.run,
        [folder / "bin/python", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.strip() in LABELS, done.stderr


ASKING = """
from fastapi.testclient import TestClient

with TestClient(app) as browser:
    print(browser.post("/label", files={"photo": open("photo.jpg", "rb")}).json())
"""


def the_extra(name: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][name]]


def test_the_service_config_of_the_page_is_that_of_our_clients() -> None:
    page = (ROOT / "docs/languages.md").read_text()
    (config,) = re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert json.loads(config) == channel._SERVICE_CONFIG


@pytest.mark.parametrize("language", ["go", "cpp", "java", "ruby"])
def test_the_code_of_other_languages_is_made_as_their_page_says(
    language: str, tmp_path: Path
) -> None:
    page = (ROOT / "docs/languages.md").read_text()
    (command,) = re.findall(rf"^protoc .*--{language}_out=gen .*$", page, re.MULTILINE)
    if shutil.which("protoc") is None:
        pytest.skip("no protoc here (Debian's package protobuf-compiler)")
    (tmp_path / "gen").mkdir()
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    if "program not found" in done.stderr:
        pytest.skip(f"no plugin for {language} here")
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "gen").rglob("*[cC]lassifier*"))


@pytest.mark.parametrize(
    "line", ["models promote pets 2", "classify ... --shards 3/8", "train --data a --epoch x"]
)
def test_a_slip_is_found(line: str) -> None:
    (command,) = commands(f"```sh\n.venv/bin/{line}  # a remark\n```\n")
    assert unknown_to(PARSERS[command[0]](), command[1:])
