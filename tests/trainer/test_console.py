"""What is said on a terminal and in a log."""

import subprocess
import sys

import pytest

from tests.commands import run_python, unread
from tests.conftest import ROOT
from trainer.console import Console
from trainer.exit_status import fail


@pytest.mark.parametrize("terminal", ["", "1"])
def test_names_of_files_are_said_as_they_are(
    terminal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FORCE_COLOR", terminal)
    console = Console(to_stderr=False)
    for name in ("photos [old]", "photos/[/]", ":dog:.jpg"):
        console.line(name)
        console.table("Configuration", [("data", name)])
        assert capsys.readouterr().out.count(name) == 2


@pytest.mark.parametrize("terminal", ["", "1"])
def test_names_move_no_cursor_and_begin_no_line(
    terminal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FORCE_COLOR", terminal)
    name, shown = "a\x1b[2Jb\nerror: c\x9b1A\u202e.jpg", r"a\x1b[2Jb\nerror: c\x9b1A\u202e.jpg"
    console = Console(to_stderr=False)
    console.line(name)
    console.table("Configuration", [("data", name)])
    assert capsys.readouterr().out.count(shown) == 2
    fail(FileNotFoundError(2, "No such file", name))
    assert capsys.readouterr().err == f"error: {shown}: No such file\n"


SAID = """
import sys
from trainer.console import Console, reader_may_leave
for _ in range(2):
    with reader_may_leave():
        Console(to_stderr=False).line("the summary")
        print("the answer")
sys.exit(7)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_stops_reading_changes_nothing_of_what_is_done(unbuffered: str):
    assert unread("-c", SAID, PYTHONUNBUFFERED=unbuffered) == (7, "")


def test_a_full_disk_behind_stdout_is_named_while_there_is_work():
    """As it could be that of the model repository."""
    code = "import os; from trainer.console import Console; from trainer.exit_status import fail\n"
    code += "try: Console(to_stderr=False).line('so far')\n"
    code += "except OSError as error: os._exit(fail(error))"
    with open("/dev/full", "w") as full:
        done = run_python("-c", code, stdout=full)
    assert (done.returncode, done.stderr) == (75, "error: stdout: No space left on device\n")


def test_a_full_disk_behind_stdout_is_said():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SAID], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: what is done is done, but stdout takes no more of it (No space left on device)\n"
    )
