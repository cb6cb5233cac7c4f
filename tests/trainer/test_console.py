"""What is said on a terminal and in a log."""

import pytest

from trainer.console import Console


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
