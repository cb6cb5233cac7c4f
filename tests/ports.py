"""Ports of loopback for servers that must be told theirs."""

import itertools
import os
import random
import socket

# Below those that the kernel gives to outgoing connections, which would come in between. Each
# process of pytest-xdist has a part of its own; where in it it begins is left to chance, for those
# of another checkout.
_FIRST, _BELOW, _PARTS = 10_000, 32_768, 16
_SPAN = (_BELOW - _FIRST) // _PARTS
_part = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
_begin = random.SystemRandom().randrange(_SPAN)
_ports = (_FIRST + _part * _SPAN + (_begin + step) % _SPAN for step in itertools.count())


def free_ports(count: int) -> list[int]:
    """So many one after another, on which nobody listens, and which no other test was given."""
    ports = [next(_ports) for _ in range(count)]
    while ports[-1] != ports[0] + count - 1 or not all(map(_is_free, ports)):
        ports = [*ports[1:], next(_ports)]
    return ports


def free_port() -> int:
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
