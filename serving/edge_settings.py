"""The settings of the edge: limits on calls; a part of ServerSettings."""

from dataclasses import dataclass

from serving.setting import check_ranges, setting


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    max_calls: int = setting(
        1024, "calls answered at once, each request of a stream counting as one"
    )
    max_streams: int = setting(256, "streams open at once")
    max_stream_in_flight: int = setting(16, "requests of one stream that are answered at once")

    def __post_init__(self) -> None:
        check_ranges(
            self,
            (
                ("max_calls", 1, 1_000_000),
                ("max_streams", 1, 1_000_000),
                ("max_stream_in_flight", 1, 100_000),
            ),
        )
