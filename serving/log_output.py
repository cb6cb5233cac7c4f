"""Log lines on stderr: a reader that stalls costs lines, and holds nobody up.

A full pipe blocks whoever writes to it: the event loop, and with it every call and a stop.
"""

import logging
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from contextlib import suppress

# What may wait for the reader, of each process: over 10,000 lines of the access log.
MOST_BYTES = 4 * 2**20
RETRY_S = 0.05
# What still waits when the process ends is tried for so long.
LAST_S = 0.5


class LineHandler(logging.Handler):
    """The thread that logs a line writes it, while the reader keeps up. Once it is behind, lines
    wait; once too many do, all that come are dropped until none waits, and then it says so."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0  # lines, as all that is counted here
        self._told = 0  # of those dropped
        self._descriptor = descriptor
        # A pipe that can be written to takes so much without blocking.
        self._at_once = sys.maxsize if _unshared(descriptor) else select.PIPE_BUF
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._encoding = getattr(sys.stderr, "encoding", "utf-8")  # it may be closed, and None
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # of what waits
        self._retrying = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:
            self.handleError(record)
            return
        full = self.dropped > self._told or self._bytes + len(line) > MOST_BYTES
        if self._waiting and full:
            self.dropped += line.count(b"\n")
        else:
            self._add(line)
        self._write()
        if self._waiting and not self._retrying:
            with suppress(RuntimeError):  # no thread can be had: the next line tries again
                threading.Thread(target=self._retry, name="log", daemon=True).start()
                self._retrying = True  # it has to wait for our lock before it says otherwise

    def close(self) -> None:
        self.acquire()
        until = time.monotonic() + LAST_S
        while self._waiting and time.monotonic() < until:
            self._write()
            time.sleep(RETRY_S / 10)
        self._waiting.clear()  # nobody tries again: the descriptor may be another's by then
        self._bytes = 0
        self.release()
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

    def _add(self, line: bytes) -> None:
        self._waiting.append(line)
        self._bytes += len(line)

    def _retry(self) -> None:
        """Until nothing waits: perhaps no line comes any more that would take the others along."""
        waits = True
        while waits:
            time.sleep(RETRY_S)
            self.acquire()
            self._write()
            waits = self._retrying = bool(self._waiting)
            self.release()

    def _write(self) -> None:
        """What can be written now: several lines at once, as many as a pipe takes whole. A longer
        line can be cut by one of another process, if the reader is behind."""
        while self._waiting and self._poll.poll(0):
            lines = self._waiting.popleft()
            while self._waiting and len(lines) + len(self._waiting[0]) <= select.PIPE_BUF:
                lines += self._waiting.popleft()
            try:
                written = os.write(self._descriptor, lines[: self._at_once])
            except BlockingIOError:  # another process has filled it meanwhile
                self._waiting.appendleft(lines)
                return
            except OSError:  # nobody is there to read any more, or the disk is full
                self._bytes -= len(lines)
                self.dropped += lines.count(b"\n")
                continue
            self._bytes -= written
            if written < len(lines):
                self._waiting.appendleft(lines[written:])
            if not self._waiting and self.dropped > self._told:
                self._tell()

    def _tell(self) -> None:
        said = "%d lines of the log were dropped: stderr did not take them"
        count = self.dropped - self._told
        self._told = self.dropped
        self._add(
            self._line(
                logging.LogRecord(__name__, logging.WARNING, __file__, 0, said, (count,), None)
            )
        )


def lines_dropped() -> int:
    """By this process, so far."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, LineHandler))


def _unshared(descriptor: int) -> bool:
    """Whether writing never blocks. A pipe or a terminal is opened anew in its place: O_NONBLOCK on
    what we were given would hold for all others who have it. So no library blocks on it either.

    False where that can't be done: another user's, or no /proc. Should another process then fill
    a pipe between our poll and our write, that does block.
    """
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
            os.dup2(own, descriptor)
            os.close(own)
    except OSError:
        return False
    return True
