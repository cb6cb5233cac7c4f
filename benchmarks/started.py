"""A `serve` of our own, on a free port, for the benchmarks that call one."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Started:
    address: str
    pid: int


def cpu_s(pid: int) -> float:
    """User and system time of a process and all its threads (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def started(models: Path, *flags: str) -> Iterator[Started]:
    """Ready to answer, on the CPU; it ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "serving.serve", "--models", str(models), "--port", "0"]
        command += ["--port-file", str(port_file), "--device", "cpu", *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not port_file.exists():
                if process.poll() is not None:
                    sys.exit("error: the server did not start; it said why above")
                time.sleep(0.05)
            address = f"127.0.0.1:{port_file.read_text().strip()}"
            yield Started(address=address, pid=process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
