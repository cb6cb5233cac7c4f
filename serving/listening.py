"""Whether an address can be listened on: gRPC says that it can't, and not why."""

import errno
import socket

from serving.channel import host_port
from serving.errors import Unavailable

_HERE = ": it must be an address of this machine"
_HINTS = {errno.EADDRINUSE: "; is another server there?", errno.EADDRNOTAVAIL: _HERE}


def can_not_listen(host: str, port: int, obstacle: OSError | None) -> Unavailable:
    """obstacle: None where the system sees none, as for `0x7f000001`, which gRPC does not take."""
    if obstacle is None:
        return Unavailable(f"can't listen on {host_port(host, port)}{_HERE}")
    unknown = isinstance(obstacle, socket.gaierror)
    hint = _HERE if unknown else _HINTS.get(obstacle.errno or 0, "")
    return Unavailable(
        f"can't listen on {host_port(host, port)} ({obstacle.strerror or obstacle}){hint}"
    )


def obstacle(host: str, port: int) -> OSError | None:
    """What stands against listening there. Of the addresses of a name one is enough."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    found: OSError | None = None
    for family, kind, protocol, _, address in places:
        try:
            with socket.socket(family, kind, protocol) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(address)
                return None
        except OSError as error:
            found = error
    return found
