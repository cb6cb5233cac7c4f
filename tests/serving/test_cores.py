import math
import os
from pathlib import Path

import pytest

from serving.cores import cgroup_quota, usable_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def quota(tmp_path: Path, lines: str) -> float:
    write(tmp_path / "self", lines)
    return cgroup_quota(tmp_path / "cgroup", tmp_path / "self")


def test_version_2_takes_the_least_quota_on_the_way_up(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu.max", "max 100000\n")
    write(tmp_path / "cgroup/pods/cpu.max", "150000 100000\n")
    write(tmp_path / "cgroup/pods/cri:one/cpu.max", "400000 100000\n")
    assert quota(tmp_path, "0::/pods/cri:one\n") == 1.5


def test_version_2_in_a_container_sees_its_own_root(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu.max", "250000 100000\n")
    assert quota(tmp_path, "0::/kubepods/burstable/pod1/abc\n") == 2.5


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_version_1(tmp_path: Path, mount: str) -> None:
    write(tmp_path / f"cgroup/{mount}/docker/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / f"cgroup/{mount}/docker/cpu.cfs_period_us", "100000\n")
    write(tmp_path / f"cgroup/{mount}/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / f"cgroup/{mount}/cpu.cfs_period_us", "100000\n")
    write(tmp_path / f"cgroup/{mount}/another/cpu.cfs_quota_us", "10000\n")
    write(tmp_path / f"cgroup/{mount}/another/cpu.cfs_period_us", "100000\n")
    lines = "12:memory:/another\n4:cpu,cpuacct:/docker\n1:name=systemd:/another\n"
    assert quota(tmp_path, lines) == 0.5


def test_no_quota(tmp_path: Path) -> None:
    assert quota(tmp_path, "0::/\n") == math.inf
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "absent") == math.inf


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_counts() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= usable_cores() <= len(allowed)
