"""The cluster of tests/cluster/failover.py, where this machine can make one."""

import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from tests.cluster.failover import SLOWEST_S, Seen, problems
from tests.conftest import ROOT


def seen(by: int, slowest_s: float = 0.1) -> Seen:
    return Seen(latencies_s=[0.1, slowest_s], answered_by=Counter({by: 2}))


def test_a_call_that_took_too_long_or_failed_is_a_problem() -> None:
    table = {"1 comes back": seen(1), "2 is back on the network": seen(2), "3 is added": seen(3)}
    assert problems([*table.items()]) == []
    table["2 is cut off"] = seen(1, slowest_s=SLOWEST_S + 1)
    assert problems([*table.items()]) == ["2 is cut off: a call took 7.0 s"]
    table["2 is cut off"] = seen(1)
    table["3 is added"] = Seen(latencies_s=[0.1], answered_by=Counter({1: 1}), failures=["Lost"])
    assert problems([*table.items()]) == [
        "3 is added: Lost",
        "server 3 got no calls once it was added",
    ]


@pytest.mark.slow
def test_no_call_fails_that_another_server_can_answer() -> None:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-m", "tests.cluster.failover"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
