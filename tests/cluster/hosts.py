"""Hosts on one machine: network namespaces on a bridge, each with a share of a core.

Needs root and iproute2. Run in namespaces of its own (`unshare --net --mount`), so that all of it
is gone with the process.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

BRIDGE = "cluster0"
PORT = 50051
CPU_CGROUPS = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 20_000


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


def can_limit() -> bool:
    return (CPU_CGROUPS / "tasks").exists()


def make_switch() -> None:
    os.makedirs("/run/netns", exist_ok=True)
    run("mount -t tmpfs tmpfs /run/netns")
    run("ip link set lo up")
    run(f"ip link add {BRIDGE} type bridge")
    run(f"ip addr add 10.77.0.1/24 dev {BRIDGE}")
    run(f"ip link set {BRIDGE} up")


@dataclass(kw_only=True)
class Host:
    number: int  # 1 to 99: its address, and the version that its server answers with
    models: Path
    cores: float
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"host{self.number}"

    @property
    def ip(self) -> str:
        return f"10.77.0.{100 + self.number}"

    def plug_in(self) -> None:
        run(f"ip netns add {self.name}")
        run(f"ip link add veth{self.number} type veth peer name eth0 netns {self.name}")
        run(f"ip link set veth{self.number} master {BRIDGE} up")
        run(f"ip -n {self.name} addr add {self.ip}/24 dev eth0")
        run(f"ip -n {self.name} link set eth0 up")
        run(f"ip -n {self.name} link set lo up")

    def start(self) -> None:
        """Returns at once; whether it is ready, its health service tells."""
        log = self.models.parent / f"{self.name}.log"
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "serving.serve"]
        command += ["--models", str(self.models), "--host", "0.0.0.0", "--port", str(PORT)]
        command += ["--device", "cpu", "--cores", "1", "--decode-threads", "1"]
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)

    def limit(self) -> None:
        """From now on it has so much of the processor, as a small machine would."""
        assert self.process is not None
        group = CPU_CGROUPS / f"pawprint-{os.getpid()}-{self.name}"
        group.mkdir(exist_ok=True)
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(int(self.cores * PERIOD_US)))
        (group / "cgroup.procs").write_text(str(self.process.pid))

    def kill(self) -> None:
        """Power off: SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(60)
        self.process = None
        return status

    def cut_off(self) -> None:
        """Pull the cable: nothing comes through, and nobody is told."""
        run(f"ip link set veth{self.number} nomaster")

    def mend(self) -> None:
        run(f"ip link set veth{self.number} master {BRIDGE}")

    def remove(self) -> None:
        self.kill()
        group = CPU_CGROUPS / f"pawprint-{os.getpid()}-{self.name}"
        if group.exists():
            group.rmdir()
