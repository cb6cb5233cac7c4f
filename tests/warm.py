"""Commands of the trainer in processes of their own, forked from one that has imported torch.

What they import costs more than the few photos that tests give them to learn from. Exit handlers
do not run, and what is read as Python starts (its own flags, OMP_NUM_THREADS) is as in the tests:
where a test is of these, `commands.run_python` starts Python itself.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.warmed"])


class Warm:
    """Python with these arguments, `-m module ...` or `-c code ...`.

    Used as a subprocess.Popen whose stdout and stderr are pipes of text.
    """

    def __init__(
        self, *arguments: object, env: Mapping[str, str] = os.environ, cwd: Path = ROOT
    ) -> None:
        self.args = [sys.executable, *map(str, arguments)]
        (out, out_end), (err, err_end) = (_context.Pipe(duplex=False) for _ in range(2))
        what = (self.args[1:], dict(env), cwd, out_end, err_end)
        self._process = _context.Process(target=_become, args=what)
        self._process.start()
        weakref.finalize(self, _end, self._process)  # of a test that failed
        for end in (out_end, err_end):
            end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(c.fileno())) for c in (out, err))
        for connection in (out, err):
            connection.close()

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it has said that was not read; it is killed where it takes longer."""
        killer = threading.Timer(timeout, self.kill)
        killer.start()
        with self.stdout, self.stderr, ThreadPoolExecutor() as pool:
            out, err = pool.map(lambda stream: stream.read(), (self.stdout, self.stderr))
        self._process.join()
        killer.cancel()
        return out, err

    @property
    def returncode(self) -> int | None:
        """None: it runs."""
        return self._process.exitcode


def run_warm(
    *arguments: object, timeout: float = 120, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """To its end."""
    process = Warm(*arguments, **options)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.kill()


def _become(
    arguments: list[str], environment: dict[str, str], cwd: Path, out: Connection, err: Connection
) -> None:
    for stream, end in ((1, out), (2, err)):
        os.dup2(end.fileno(), stream)
        end.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    flag, what, *sys.argv[1:] = arguments
    if flag == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
