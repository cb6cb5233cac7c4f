"""What a client shows a server, and what it wants to see: certificates and a token."""

import argparse
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc

from serving.channel import CHANNEL_OPTIONS, target_of
from serving.errors import InvalidRequest, Unauthenticated, Unavailable, in_utf8
from serving.pem import TAKEN_KINDS, check_certificates, check_pair, key_kind, read_pem
from serving.proxies import past_proxies

TOKEN_VARIABLE = "PAWPRINT_TOKEN"
TRY_TLS = "if the server speaks TLS: --tls or --tls-ca FILE"
_NO_CONNECTION = "connections to all backends failing"  # of gRPC's round_robin

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Paths of PEM files. ca: the authorities to trust, "" for those of the machine. cert and key:
    shown to a server that wants them. server_name: the one that its certificate must have, where
    that is not the one in the address."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    def __post_init__(self) -> None:
        in_utf8("the server's name", self.server_name)
        if bool(self.cert) != bool(self.key):
            raise InvalidRequest(
                "a client's certificate needs its key, and the key its certificate"
            )


Options = Sequence[tuple[str, int | str]]


def channel_opener(
    address: str, tls: Tls | None, options: Options = CHANNEL_OPTIONS
) -> Callable[[], grpc.Channel]:
    """What opens a channel, not encrypted without `tls`. Raises InvalidRequest itself, and has read
    the files: who opens later may have no right to."""
    return _opener(grpc, address, tls, options)


def async_channel_opener(address: str, tls: Tls | None) -> Callable[[], grpc.aio.Channel]:
    """As channel_opener, for asyncio: to be called in the event loop."""
    return _opener(grpc.aio, address, tls, CHANNEL_OPTIONS)


def _opener(kind: Any, address: str, tls: Tls | None, options: Options) -> Callable[[], Any]:
    """kind: the module grpc or grpc.aio."""
    target = target_of(address)
    options = [*options, *past_proxies(target)]
    if tls is None:
        return partial(kind.insecure_channel, target, options)
    named = [*options, *_name(tls, address)]
    return partial(kind.secure_channel, target, _credentials(tls), named)


def sendable(token: str | None) -> str:
    """The same, "" for none. Raises InvalidRequest for one that no call can carry."""
    if not token:
        return ""
    if token.isascii() and token.isprintable():
        return token
    raise InvalidRequest(
        f"the token ({TOKEN_VARIABLE} of the commands) holds a character that no call can carry, "
        "such as the newline at the end of a file"
    )


def authorised(stub: S, token: str) -> S:
    """The stub, whose every call carries the token; as it is if there is none."""
    if token:
        metadata = (("authorization", f"Bearer {token}"),)
        for name, method in vars(stub).items():
            setattr(stub, name, _WithMetadata(method, metadata))
    return stub


class _WithMetadata:
    def __init__(self, method: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._method(*arguments, metadata=self._metadata, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        return self._method.future(*arguments, metadata=self._metadata, **options)


def add_access_flags(parser: argparse.ArgumentParser, title: str = "access") -> None:
    group = parser.add_argument_group(
        title, f"If the server wants a token, set {TOKEN_VARIABLE} in the environment."
    )
    group.add_argument("--tls", action="store_true", help="encrypt; implied by the flags below")
    group.add_argument(
        "--tls-ca", default="", metavar="FILE", help="PEM file of the authority to trust"
    )
    group.add_argument(
        "--tls-cert", default="", metavar="FILE", help="PEM file of the caller's certificate"
    )
    group.add_argument("--tls-key", default="", metavar="FILE", help="PEM file of its key")
    group.add_argument(
        "--tls-server-name", default="", metavar="NAME", help="name in the server's certificate"
    )


def access_of(options: argparse.Namespace) -> dict[str, Any]:
    """`tls` and `token` of Client, from flags and the environment. Raises InvalidRequest."""
    tls = Tls(
        ca=options.tls_ca,
        cert=options.tls_cert,
        key=options.tls_key,
        server_name=options.tls_server_name,
    )
    wanted = options.tls or tls != Tls()
    return {"tls": tls if wanted else None, "token": os.environ.get(TOKEN_VARIABLE, "")}


def advised(error: Exception, options: argparse.Namespace) -> str:
    """What the error says, and which flag or variable of our commands may help."""
    if isinstance(error, Unauthenticated):
        what = "it stands in" if os.environ.get(TOKEN_VARIABLE) else "set"
        return f"{error}; {what} {TOKEN_VARIABLE}"
    refused = isinstance(error, Unavailable) and _NO_CONNECTION in str(error)
    if refused and access_of(options)["tls"] is None:
        return f"{error}; {TRY_TLS}"
    return str(error)


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    cert = _read(tls.cert)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca),
        private_key=_read(tls.key),
        certificate_chain=cert,
    )
    _check(tls)
    if cert and not key_kind(cert):
        raise InvalidRequest(f"{tls.key} holds a key of another kind; {TAKEN_KINDS}")
    return credentials


def _check(tls: Tls) -> None:
    """Raises InvalidRequest for a file that holds something else: to gRPC it would be a server that
    does not answer."""
    try:
        if tls.ca:
            check_certificates(tls.ca)
    except ssl.SSLError as error:
        raise InvalidRequest(f"{tls.ca} holds no certificate in PEM") from error
    try:
        if tls.cert:
            check_pair(tls.cert, tls.key)
    except ssl.SSLError as error:
        raise InvalidRequest(
            f"{tls.cert} and {tls.key} are no certificate and its key in PEM, without a passphrase"
        ) from error
    except OSError as error:
        raise InvalidRequest(f"{error.filename} can't be used: {error.strerror}") from error


def _read(path: str) -> bytes | None:
    try:
        return read_pem(path) if path else None
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read: {error.strerror}") from error


def _name(tls: Tls, address: str) -> list[tuple[str, str]]:
    """Raises InvalidRequest where there must be one: gRPC would look for all of the addresses as a
    single name in each certificate."""
    if "," in address and not tls.server_name:
        raise InvalidRequest(
            "over TLS several addresses need the name that the certificate of each has: "
            "server_name (--tls-server-name of the commands)"
        )
    return [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
