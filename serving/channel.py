"""How our clients reach servers: one, or several with balancing, health checks and retries.

All of it is gRPC's own, in a service config (github.com/grpc/grpc, doc/service_config.md):
round_robin over every address, those left out whose health service does not say SERVING, and
another attempt, at the next server, for a call that failed as UNAVAILABLE or that its server, not
its caller, cancelled. Classify changes nothing on a server, so a repeated attempt is harmless.
"""

import ipaddress
import json
from string import hexdigits

import grpc

from serving.errors import InvalidRequest, in_utf8

SERVICE = "pawprint.v1.ClassifierService"
# A request larger than this buffer would be sent once only. gRPC's own default is 256 KiB, less
# than many photos.
RETRY_BUFFER_BYTES = 80 * 1024 * 1024

MAX_ATTEMPTS = 5
INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 1.0
# CANCELLED too: a call that reaches a server in the very moment in which it stops.
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

_RETRIES = {
    "name": [{"service": SERVICE, "method": m} for m in ("Classify", "ListModels", "GetModel")],
    "retryPolicy": {
        "maxAttempts": MAX_ATTEMPTS,
        "initialBackoff": f"{INITIAL_BACKOFF_S:g}s",
        "maxBackoff": f"{MAX_BACKOFF_S:g}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": [code.name for code in _RETRIED],
    },
}
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
    "methodConfig": [_RETRIES],
    # Where most calls fail, retries would only be more load: gRPC then stops them.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    # gRPC's own limit, 4 MiB, may be less than the labels of many photos.
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
    # A server whose network is cut says nothing: without an answer to a ping it counts as gone.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Each client has connections of its own, so that several can use several workers of a server.
    ("grpc.use_local_subchannel_pool", 1),
    # Sooner than the last attempt at a call, for one that dies resets the connection to the next.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # A server that comes back, or is new behind its name, is found within this time.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
]


def host_port(host: str, port: int | str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def target_of(address: str) -> str:
    """What gRPC takes: HOST:PORT, dns:///HOST:PORT (every address that the name has), or several.

    Several are IP addresses with ports, separated by commas. Raises InvalidRequest.
    """
    in_utf8("the address", address)
    if not address:
        raise InvalidRequest("a server's address is HOST:PORT; got an empty one")
    if address.startswith(("http://", "https://")):
        raise InvalidRequest(f"a server's address is HOST:PORT, without http://; got {address}")
    if "," not in address:
        host, _, port = address.rpartition(":")
        if ":" in host and set(address) <= set(f"{hexdigits}:."):  # the port would be a part of it
            raise InvalidRequest(
                f"an IPv6 address stands in brackets, [{host}]:{port}; got {address}"
            )
        if port.isdecimal() and not _is_port(port):  # gRPC would take another for it
            raise InvalidRequest(f"no port has the number {port[:20]}: {address[:200]}")
        return address
    kinds = set()
    for one in address.split(","):
        host, _, port = one.strip().rpartition(":")
        try:
            kinds.add(f"ipv{ipaddress.ip_address(host.strip('[]')).version}")
            if not _is_port(port):
                raise ValueError(f"no port has the number {port}")
        except ValueError as error:
            raise InvalidRequest(
                "several servers are given as IP:PORT,IP:PORT (a name that has several addresses "
                f"as dns:///NAME:PORT), got {one.strip()!r}"
            ) from error
    if len(kinds) > 1:
        raise InvalidRequest(f"addresses must be all IPv4 or all IPv6, got {address}")
    return f"{kinds.pop()}:{address.replace(' ', '')}"


def servers_in(address: str) -> int:
    """As far as it says: a name may have several."""
    return address.count(",") + 1


def _is_port(text: str) -> bool:
    digits = text.lstrip("0")  # few, before int() is asked, which refuses thousands of them
    return text.isdecimal() and 0 < len(digits) <= 5 and int(digits) < 2**16
