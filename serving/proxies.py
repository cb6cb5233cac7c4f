"""Proxies that the environment names: gRPC takes them for every server, for this machine's too."""

import ipaddress
import os
import re

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # of gRPC, the first that is set
STRAIGHT = (("grpc.enable_http_proxy", 0),)
_SCHEME = re.compile(r"(?:dns:(?://[^/]*/)?|ipv[46]:)")


def past_proxies(target: str) -> tuple[tuple[str, int], ...]:
    """Options of a channel to this machine, which no proxy reaches, or to several addresses, for
    which gRPC would ask it as for one name. target: as of serving.channel.target_of."""
    return STRAIGHT if "," in target or _is_here(_host(target)) else ()


def by_proxy(target: str) -> str:
    """Words that follow on "no answer": which proxy is in between. Empty if there is none."""
    variable = next((name for name in _VARIABLES if name in os.environ), "")
    if not os.environ.get(variable, "").startswith("http://"):  # gRPC takes no others
        return ""
    if target.startswith("unix:") or past_proxies(target):
        return ""
    without = os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", ""))
    if any(_names(entry.strip(), _host(target)) for entry in without.split(",") if entry):
        return ""
    return f" through the proxy that {variable} names (no_proxy names hosts to reach without it)"


def _host(target: str) -> str:
    rest = _SCHEME.sub("", target, count=1)
    if rest.startswith("["):
        return rest[1:].partition("]")[0]
    return rest.partition(":")[0] if rest.count(":") == 1 else rest


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return address.is_loopback or address.is_unspecified


def _names(entry: str, host: str) -> bool:
    """As gRPC does: the end of a name, or a range of addresses."""
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
