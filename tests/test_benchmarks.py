"""What benchmarks can't measure is refused before they measure anything."""

import runpy
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(("flag", "few"), [("--runs", 1), ("--runs", -1), ("--steps", 2)])
def test_the_cost_of_too_few_runs_is_not_measured(
    flag: str, few: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["cost.py", "photos", flag, str(few)])
    main = runpy.run_path(str(ROOT / "benchmarks/cost.py"))["main"]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and f"error: {flag}: the first" in capsys.readouterr().err
