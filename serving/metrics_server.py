"""A small HTTP server beside gRPC: /metrics for Prometheus, /healthz and /readyz for probes."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from serving.channel import host_port
from serving.errors import Unavailable

log = logging.getLogger(__name__)

_STALLED_S = 10.0  # a client that sends nothing for so long is dropped
_NO_PLACE_S = 0.2  # until a connection is tried again that no descriptor was free for


class MetricsServer:
    """Serves in threads of its own from its creation until `close`."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool]
    ) -> None:
        """host: 0.0.0.0 is every address, also those of IPv6, as gRPC has it. Raises Unavailable if
        the port can't be had."""

        class Handler(BaseHTTPRequestHandler):
            timeout = _STALLED_S

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    encode, kind = self._encoder()
                    self._send(200, kind, encode(registry))
                elif path == "/healthz":
                    self._send(200, "text/plain", b"ok\n")
                elif path == "/readyz":
                    up = ready()
                    self._send(200 if up else 503, "text/plain", b"ok\n" if up else b"not ready\n")
                else:
                    self._send(404, "text/plain", b"/metrics, /healthz or /readyz\n")

            do_HEAD = do_GET  # some load balancers probe with it

            def _encoder(self) -> tuple[Callable[[CollectorRegistry], bytes], str]:
                try:
                    return choose_encoder(self.headers.get("Accept", ""))
                except (TypeError, ValueError):  # a version that is none
                    return choose_encoder("")

            def _send(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def version_string(self) -> str:
                return "pawprint"  # not which Python

            def log_message(self, format: str, *arguments: object) -> None:
                """A scrape every few seconds is no news."""

        try:
            where = "::" if host == "0.0.0.0" and socket.has_dualstack_ipv6() else host
            family = socket.AF_INET6 if ":" in where else socket.AF_INET
            self._server = _Server(family, (where, port), Handler)
        except OSError as error:
            raise Unavailable(
                f"can't serve metrics on {host_port(host, port)}: {error.strerror or error}"
            ) from error
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of 5, the default, a burst of scrapes leaves no place for a probe

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
    ) -> None:
        self.address_family = family
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:  # whatever the system's default is
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:  # the connection is still there: without a rest it would take a whole core
            time.sleep(_NO_PLACE_S)
            raise

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # a scraper that went away in the middle
            log.exception("unexpected error while the metrics were gathered")
