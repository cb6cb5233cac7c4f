"""How many cores this process may really use: affinity and cgroup quota, not what is built in."""

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_SELF = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores this process may use at once, at least 1; a quota of 2.5 cores counts as 2."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, math.floor(min(allowed, cgroup_quota(CGROUP_ROOT, CGROUP_OF_SELF))))


def built_in_cores() -> int:
    return os.cpu_count() or 1


def cgroup_quota(root: Path, of_self: Path) -> float:
    """The least CPU quota, in cores, of this process's cgroup and those above it; inf if none.

    Reads version 2 (cpu.max) and version 1 (cpu.cfs_quota_us), kernel documentation
    admin-guide/cgroup-v2 and scheduler/sched-bwc.
    """
    try:
        lines = of_self.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root
        elif "cpu" in controllers.split(","):
            mount = next((m for m in (root / controllers, root / "cpu") if m.is_dir()), root)
        else:
            continue
        folder = mount / path.lstrip("/")
        # In a container the path may be the host's, of which only the mount's own root is visible.
        for above in (folder, *folder.parents):
            if above == mount or mount in above.parents:
                quotas.append(_quota_at(above))
    return min(quotas)


def _quota_at(folder: Path) -> float:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
