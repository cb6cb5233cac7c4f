"""TLS to the server of this very machine, by the settings that stand in its environment.

What is trusted is the server's own certificate, under whatever name it has: the authority that
signed it may be known to its callers alone.
"""

import socket
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from serving.access import Tls

_CERT = "PAWPRINT_SERVE_TLS_CERT"
_KEY = "PAWPRINT_SERVE_TLS_KEY"
_CLIENT_CA = "PAWPRINT_SERVE_TLS_CLIENT_CA"


def own_tls(address: str, environment: Mapping[str, str], timeout_s: float) -> Tls | None:
    """None if the environment sets no certificate. address: HOST:PORT.

    To a server that wants callers' certificates its own pair is shown, which it takes if the same
    authority has signed that.
    """
    cert, key = environment.get(_CERT, ""), environment.get(_KEY, "")
    if not cert or not key:
        return None
    shown = {"cert": cert, "key": key} if environment.get(_CLIENT_CA) else {}
    return Tls(ca=cert, server_name=_name(address, cert, timeout_s), **shown)


def _name(address: str, cert: str, timeout_s: float) -> str:
    """One that the certificate is valid for; "" if the server does not show it."""
    host, _, port = address.rpartition(":")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # up to this certificate, no further
        context.load_verify_locations(cert)
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout_s) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            shown: Any = encrypted.getpeercert()
    except (OSError, ValueError):  # the call that follows fails too, and says more
        return ""
    others = shown.get("subjectAltName", ())
    names = [name.replace("*", "any") for kind, name in others if kind == "DNS"]
    # OpenSSL writes out the zeros of one of IPv6, and gRPC does not.
    names += [str(ip_address(name)) for kind, name in others if kind == "IP Address"]
    if not others:  # gRPC takes the common name then, OpenSSL and Go don't
        parts = (part for several in shown["subject"] for part in several)
        names = [name for kind, name in parts if kind == "commonName"]
    return names[0] if names else ""
