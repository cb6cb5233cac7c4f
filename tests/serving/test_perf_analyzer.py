"""NVIDIA's perf_analyzer, unchanged, measures a server: the protocol as its program speaks it."""

import asyncio
import ctypes
import json
import sys

import pytest

from tests.conftest import ROOT, Running
from tests.environments import environment_with


async def test_perf_analyzer_measures_a_server(
    running: Running, pytestconfig: pytest.Config
) -> None:
    try:
        ctypes.CDLL("libb64.so.0d")
    except OSError:
        pytest.skip("perf_analyzer needs Debian's libb64-0d")
    packages = ("tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.9.79")
    environment = environment_with(pytestconfig.cache, "perf-analyzer", *packages)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "benchmarks/perf_analyzer.py", "--model", "pets", "--json"),
        *("--address", running.address, "--environment", str(environment)),
        *("--concurrency", "1,4", "--batch", "2", "--window-ms", "400"),
        *("--stability", "100000"),  # the machine has other things to do too
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["callers"] for row in rows] == [1, 4]
    for row in rows:
        assert row["photos_per_s"] > 0 and 0 < row["p50_us"] <= row["p99_us"]
        assert row["inference_us"] > 0
