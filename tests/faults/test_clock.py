"""The clock of the machine is set, forwards and back, under a running server.

By Debian's libfaketime, which the server's process is started with; monotonic clocks are left to
the kernel, as they are where an administrator or NTP sets the clock. The library makes waiting slow
(calls take up to a second, with the clock in its place too), so no latency is judged here.
"""

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from serving.client import Client
from serving.errors import DeadlineExceeded
from tests.conftest import ROOT, ServerProcess
from tests.photos import jpeg, slow_png
from tests.tiny import build_version

WITHIN_S = 60.0
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
# Who may ask for the time of day: what is told to people, or compared with dates of others.
TELLS_THE_TIME = {
    "blob_cache.py",  # age of files
    "inference_statistics.py",  # when a model last answered
    "troubles.py",  # when the repository was last read
    "tls.py",  # dates of certificates
    "tracing.py",  # begin and end of spans
    "whole_file.py",  # age of files
}


def test_no_deadline_and_no_delay_hangs_on_the_time_of_day() -> None:
    asks = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|ctime)\(|\.(now|utcnow|today)\(")
    found = {path.name for path in (ROOT / "serving").glob("*.py") if asks.search(path.read_text())}
    assert found == TELLS_THE_TIME


@pytest.mark.slow
@pytest.mark.skipif(not LIBRARIES, reason="no libfaketime: apt-get install libfaketime")
def test_a_clock_that_jumps_changes_nothing(
    models: Path,
    tmp_path: Path,
    start: Callable[..., ServerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", str(LIBRARIES[0]))
        environment.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        environment.setenv("FAKETIME_NO_CACHE", "1")
        environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        flags = ("--access-log", "on", "--log-format", "json", "--poll-s", "0.1")
        server = start(models, *flags)
    jumps = ("+0", "+400d", "-400d")
    with Client(server.address) as client:
        for version, jump in enumerate(jumps, 1):
            clock.write_text(jump)
            for seed in range(5):
                client.classify([jpeg(seed=seed)], model="pets", timeout_s=WITHIN_S)
            with pytest.raises(DeadlineExceeded):
                client.classify([slow_png()], model="pets", timeout_s=0.03)
            build_version(models, "pets", seed=version)  # found by polling, clock or no clock
            deadline = time.monotonic() + WITHIN_S
            while client.classify([jpeg()], model="pets", timeout_s=WITHIN_S).version == version:
                assert time.monotonic() < deadline, "the new version was not found"
                time.sleep(0.05)
    status, _, err = server.stop()
    assert status == 0 and "Traceback" not in err
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    calls = [datetime.fromisoformat(line["time"]) for line in lines if line["message"] == "call"]
    steps = [(after - before).days for before, after in zip(calls, calls[1:], strict=False)]
    assert max(steps) > 300 and min(steps) < -300  # it did see the clock jump
