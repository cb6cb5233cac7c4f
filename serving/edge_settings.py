"""The settings of the edge: limits on calls, metrics, logs; a part of ServerSettings."""

from dataclasses import dataclass

from serving.log_format import FORMATS
from serving.setting import check_choice, check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    max_calls: int = setting(
        1024, "calls answered at once, each request of a stream counting as one"
    )
    max_streams: int = setting(256, "streams open at once")
    max_stream_in_flight: int = setting(16, "requests of one stream that are answered at once")

    metrics_port: int = setting(
        0, "port of /metrics, /healthz and /readyz over HTTP, by the rule 9464; 0: none"
    )
    metrics_host: str = setting(
        "127.0.0.1", "address of the metrics port; 0.0.0.0 or :: for every network"
    )
    log_format: str = setting("text", "log lines as text or json")
    access_log: str = setting("off", "a log line for each call: on or off")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            (
                ("max_calls", 1, 1_000_000),
                ("max_streams", 1, 1_000_000),
                ("max_stream_in_flight", 1, 100_000),
                ("metrics_port", 0, 65535),
            ),
        )
        check_choice(self, "log_format", FORMATS)
        check_choice(self, "access_log", ("on", "off"))
