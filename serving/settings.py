"""The settings of `serve`: from flags, then the environment (PAWPRINT_SERVE_...), then a TOML file.

`max_batch` is --max-batch, PAWPRINT_SERVE_MAX_BATCH and max_batch in the file alike. What is not
known is refused, wherever it comes from.
"""

import argparse
import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from serving.control_settings import ControlSettings
from serving.cores import built_in_cores, usable_cores
from serving.device import DEVICES
from serving.edge_settings import EdgeSettings
from serving.errors import InvalidRequest
from serving.gpu_settings import GpuSettings
from serving.photo_formats import FORMATS, read_formats
from serving.precision import PRECISIONS
from serving.serve_flags import PADS, parser
from serving.setting import check_choice, check_ranges, setting

ENVIRONMENT = "PAWPRINT_SERVE_"
EVERY_NETWORK = frozenset({"0.0.0.0", "::"})  # either is that of both families
# What a running server takes over from its configuration, read again.
LIVE_SETTINGS = frozenset(
    {
        *{"only", "versions", "canary", "shadow", "control", "poll_s", "drain_s"},
        *{"max_photos", "max_photo_mib", "max_megapixels", "photo_formats"},
    }
)


@dataclass(frozen=True, kw_only=True)
class ServerSettings(ControlSettings, EdgeSettings, GpuSettings):
    models: str = setting(
        "models",
        "the model repository: a folder, or s3://, gs://, az:// with a bucket and a prefix, whose "
        "files are kept in PAWPRINT_CACHE",
    )
    host: str = setting(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 or :: for every network (calls are not encrypted "
        "without tls_cert)",
    )
    port: int = setting(50051, "port to listen on; 0 for any that is free")
    port_file: str = setting("", "write the port to this file once the server is ready")
    device: str = setting(
        "auto", "auto: CUDA where it works, else the CPU; cuda: no start without CUDA"
    )
    precision: str = setting(
        "auto",
        "which variant of a version runs; auto: the one that the device gains by, if there is one",
    )
    max_batch: int = setting(0, "photos in one batch; 0: 16 on CUDA, 2 on the CPU")
    pad: str = setting(
        "auto",
        "fill batches up to 1, 2, 4, ... photos; auto: where the device gains by it",
    )
    max_delay_ms: float = setting(
        2.0, "how long an idle engine waits for photos that are being decoded, to batch them"
    )
    max_queue: int = setting(256, "photos admitted and not yet answered, for each version")
    workers: int = setting(
        1,
        "processes that share the port, for machines on which one Python interpreter is the "
        "limit; see docs/serving.md",
    )
    cores: int = setting(0, "cores that run models on the CPU; 0: all that are usable")
    decode_threads: int = setting(0, "threads that decode photos; 0: one for each usable core")
    max_message_mib: int = setting(64, "largest message, MiB")
    max_photos: int = setting(64, "photos in one call")
    max_photo_mib: int = setting(20, "largest encoded photo, MiB")
    max_megapixels: int = setting(64, "largest photo, million pixels")
    photo_formats: str = setting(
        ",".join(FORMATS).lower(), "kinds of photos that are decoded; avif and heic may be added"
    )
    drain_s: float = setting(30.0, "how long a stopping server lets running calls finish, seconds")

    def __post_init__(self) -> None:
        for one in fields(self):
            if "\0" in str(getattr(self, one.name)):  # which a file can hold
                raise InvalidRequest(f"{one.name} holds a NUL character")
        for name, choices in (("device", DEVICES), ("precision", PRECISIONS), ("pad", PADS)):
            check_choice(self, name, choices)
        ControlSettings.__post_init__(self)
        EdgeSettings.__post_init__(self)
        GpuSettings.__post_init__(self)
        if self.tensorrt and self.device == "cpu":
            raise InvalidRequest("tensorrt needs a GPU, but device is cpu")
        if self.admin_port and self.workers > 1:
            raise InvalidRequest(
                "admin_port and several workers don't go together: what an operator loads, one of "
                "them would have; publish, or move an alias, and send SIGHUP"
            )
        if not self.models:
            raise InvalidRequest("models must not be empty")
        for name in ("host", "admin_host", "metrics_host"):
            _check_host(name, getattr(self, name))
        check_ranges(
            self,
            (
                ("port", 0, 65535),
                ("max_batch", 0, 1024),
                ("max_delay_ms", 0, 10_000),
                ("max_queue", 1, 1_000_000),
                ("workers", 1, 256),
                ("cores", 0, 1024),
                ("decode_threads", 0, 1024),
                ("max_message_mib", 1, 1024),
                ("max_photos", 1, 100_000),
                ("max_photo_mib", 1, 1024),
                ("max_megapixels", 1, 1000),
                ("drain_s", 0, 3600),
            ),
        )
        if self.cores > built_in_cores():
            raise InvalidRequest(
                f"cores must be no more than this machine has ({built_in_cores()}), got "
                f"{self.cores}; 0 is all that are usable"
            )
        last = self.metrics_port + self.workers
        if (
            self.metrics_port
            and self.workers > 1
            and (last > 65535 or self.metrics_port < self.port <= last)
        ):
            raise InvalidRequest(
                f"metrics_port {self.metrics_port} with {self.workers} workers takes the ports up "
                f"to {last}, which must be no more than 65535 and not the port of the calls "
                f"({self.port})"
            )
        self._check_ports()
        read_formats(self.photo_formats)
        if self.max_connection_age_s and not self.drain_s:
            raise InvalidRequest(
                "max_connection_age_s needs a drain_s of more than 0: for so long the calls on a "
                "connection that has come of age may run on"
            )
        if self.max_queue < max(self.max_batch, self.max_photos):
            raise InvalidRequest(
                f"max_queue must be at least max_batch ({self.max_batch}) and max_photos "
                f"({self.max_photos}), got {self.max_queue}"
            )

    def _check_ports(self) -> None:
        """Raises InvalidRequest where two of them are one."""
        for (name, host, port), (other, other_host, other_port) in combinations(self.places, 2):
            shared = host == other_host or {host, other_host} & EVERY_NETWORK
            if port and port == other_port and shared:
                raise InvalidRequest(f"{name} and {other} are both {port}: each wants its own")

    @property
    def places(self) -> tuple[tuple[str, str, int], ...]:
        """The name of each port, its host and its number."""
        return (
            ("port", self.host, self.port),
            ("admin_port", self.admin_host, self.admin_port),
            ("metrics_port", self.metrics_host, self.metrics_port),
        )

    @property
    def inference_cores(self) -> int:
        return self.cores or usable_cores()

    @property
    def decoders(self) -> int:
        return self.decode_threads or usable_cores()


def _check_host(name: str, host: str) -> None:
    if not host:  # to the system it is every network
        raise InvalidRequest(f"{name} must not be empty")
    if host.startswith("["):
        raise InvalidRequest(f"{name} is an address alone, without brackets: ::1, not {host}")
    try:
        host.encode("idna")  # as the system is asked for it
        if re.fullmatch(r"[0-9.*]+", host):  # it takes `127.1` and `*`; gRPC doesn't
            ipaddress.ip_address(host)
    except ValueError as error:
        raise InvalidRequest(f"{name} is no address: {host!r}; every network is 0.0.0.0") from error


def differing(now: ServerSettings, read: ServerSettings) -> tuple[list[str], list[str]]:
    """The names of what differs, sorted: those of LIVE_SETTINGS, and those that need a restart."""
    names = sorted(f.name for f in fields(now) if getattr(now, f.name) != getattr(read, f.name))
    live = [name for name in names if name in LIVE_SETTINGS]
    return live, [name for name in names if name not in LIVE_SETTINGS]


def taken_over(now: ServerSettings, read: ServerSettings) -> ServerSettings:
    """`now`, with LIVE_SETTINGS as `read` has them. Raises InvalidRequest where they don't fit."""
    return replace(now, **{name: getattr(read, name) for name in LIVE_SETTINGS})


def read_settings(
    arguments: Sequence[str] | None, environment: Mapping[str, str], *, again: bool = False
) -> ServerSettings:
    """Raises InvalidRequest; exits as argparse does on unknown flags and --help.

    again: by a server that runs: of a pipe (`--config <(...)`) the end would be there, and with it
    the defaults, or never come.
    """
    given = vars(_parser().parse_args(arguments))
    del given["check"]
    settings = {
        key.removeprefix(ENVIRONMENT).lower(): (value, key)
        for key, value in environment.items()
        if key.startswith(ENVIRONMENT)
    }
    settings |= {
        key: (value, "--" + key.replace("_", "-"))
        for key, value in given.items()
        if value is not None
    }
    config, _ = settings.pop("config", (None, ""))
    if config is not None:
        if again and Path(config).exists() and not Path(config).is_file():
            raise InvalidRequest(f"the configuration {config} is no file that can be read again")
        settings = _read_toml(Path(config)) | settings
    kinds = {f.name: f.type for f in fields(ServerSettings)}
    unknown = [source for key, (_, source) in settings.items() if key not in kinds]
    if unknown:
        raise InvalidRequest(f"unknown setting {unknown[0]}; known: {', '.join(kinds)}")
    return ServerSettings(
        **{key: _typed(value, kinds[key], source) for key, (value, source) in settings.items()}
    )


def asks_check(arguments: Sequence[str] | None) -> bool:
    return bool(_parser().parse_args(arguments).check)


def _parser() -> argparse.ArgumentParser:
    return parser(fields(ServerSettings), ENVIRONMENT)


def _read_toml(path: Path) -> dict[str, tuple[Any, str]]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the configuration {path} can't be read: {error}") from error
    return {key: (value, f"{key} in {path}") for key, value in values.items()}


def _typed(value: Any, kind: Any, source: str) -> Any:
    """A setting from its text (flag, environment) or as TOML gives it. Raises InvalidRequest."""
    if type(value) in (str, int) and kind in (int, float):
        try:
            return kind(value)
        except (ValueError, OverflowError) as error:  # there are ints that no float is as large as
            raise InvalidRequest(f"{source}: expected {kind.__name__}, got {value!r}") from error
    if type(value) is not kind:
        raise InvalidRequest(f"{source}: expected {kind.__name__}, got {value!r}")
    return value
