"""The cluster of tests/cluster/failover.py, where this machine can make one."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.cluster.hosts import CPU_CGROUPS
from tests.conftest import ROOT


@pytest.mark.slow
def test_no_call_fails_that_another_server_can_answer() -> None:
    if os.geteuid() != 0 or not shutil.which("ip") or not (CPU_CGROUPS / "tasks").exists():
        pytest.skip("needs root, iproute2 and the cpu controller of cgroup v1")
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-m", "tests.cluster.failover"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
