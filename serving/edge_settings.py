"""The settings of the edge: limits, who may call, metrics, logs; a part of ServerSettings."""

from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidRequest
from serving.log_format import FORMATS
from serving.setting import ON_OFF, check_choice, check_ranges, setting
from serving.tls import TlsFiles


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    max_calls: int = setting(
        1024,
        "calls that are read or answered at once; requests of streams count too, but wait for "
        "their places, which are at most half of all",
    )
    max_streams: int = setting(256, "streams open at once")
    max_stream_in_flight: int = setting(16, "requests of one stream that are answered at once")
    max_connection_age_s: float = setting(
        0.0,
        "how long a connection is kept; then it takes no new calls and ends drain_s later, so that "
        "clients connect, and balance, anew; 0: for ever",
    )

    tls_cert: str = setting("", "PEM file of the server's certificate chain: calls are encrypted")
    tls_key: str = setting("", "PEM file of the key of that certificate")
    tls_client_ca: str = setting(
        "", "PEM file of an authority: callers must show a certificate that it signed"
    )
    tokens: str = setting(
        "",
        "TOML file of the callers' tokens (see python -m serving.tokens --help); without it no "
        "token is asked for",
    )
    metrics_port: int = setting(
        0, "port of /metrics, /healthz and /readyz over HTTP, usually 9464; 0: none"
    )
    metrics_host: str = setting(
        "127.0.0.1", "address of the metrics port; 0.0.0.0 or :: for every network"
    )
    log_format: str = setting("text", "form of the lines of the log")
    access_log: str = setting("off", "a log line for each call")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            (
                ("max_calls", 1, 1_000_000),
                ("max_streams", 1, 1_000_000),
                ("max_stream_in_flight", 1, 100_000),
                ("max_connection_age_s", 0, 1_000_000),
                ("metrics_port", 0, 65535),
            ),
        )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidRequest("tls_cert and tls_key must be given together")
        if self.tls_client_ca and not self.tls_cert:
            raise InvalidRequest("tls_client_ca needs tls_cert and tls_key")
        check_choice(self, "log_format", FORMATS)
        check_choice(self, "access_log", ON_OFF)

    @property
    def tls_files(self) -> TlsFiles | None:
        if not self.tls_cert:
            return None
        return TlsFiles(
            cert=Path(self.tls_cert),
            key=Path(self.tls_key),
            client_ca=Path(self.tls_client_ca) if self.tls_client_ca else None,
        )
