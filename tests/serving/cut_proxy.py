"""A TCP proxy on loopback that counts what passes, and breaks every connection at a limit."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class CutProxy:
    """`down` and `up` are the bytes passed; past `limit` of either it is as if the cable were cut.

    `connections` counts those taken, `requests` those of HTTP. Set `limit` to None to mend it;
    after `cuts` of them it mends itself.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.down = self.up = self.connections = self.requests = 0
        self.limit: int | None = None
        self.cuts: int | None = None
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def reset(self, limit: int | None = None, cuts: int | None = None) -> None:
        self.down = self.up = self.requests = 0
        self.limit, self.cuts = limit, cuts

    def close(self) -> None:
        """End every connection and every thread."""
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(client)
            with contextlib.suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self._upstream))
                self._open.append(server)
                for ends in ((client, server, "up"), (server, client, "down")):
                    self._threads.append(threading.Thread(target=self._pass, args=ends))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.limit is not None and getattr(self, way) + len(data) > self.limit:
                    if self.cuts is not None:
                        self.cuts -= 1
                        self.limit = self.limit if self.cuts else None
                    break
                setattr(self, way, getattr(self, way) + len(data))
                self.requests += data.count(b" HTTP/1.1\r\n")
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread of the other way
            end.close()


@contextlib.contextmanager
def cut_proxy(upstream: int) -> Iterator[CutProxy]:
    proxy = CutProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
