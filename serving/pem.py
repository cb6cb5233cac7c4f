"""Whether PEM files hold what TLS needs, judged by OpenSSL: gRPC doesn't say what is wrong.

How strong a key must be is not judged: gRPC's own BoringSSL takes some that OpenSSL does not. Which
kinds of keys BoringSSL takes is, as OpenSSL takes more of them.
"""

import binascii
import codecs
import errno
import re
import ssl
from pathlib import Path

# How a certificate's public key begins, in DER: what its algorithm is, and its curve.
_KINDS = {
    "RSA": "06092a864886f70d010101",
    "P-256": "06072a8648ce3d020106082a8648ce3d030107",
    "P-384": "06072a8648ce3d020106052b81040022",
    "P-521": "06072a8648ce3d020106052b81040023",
    "Ed25519": "06032b6570032100",
}
# The others are taken too, but clients by gRPC's C++ library, as that of Python, refuse them.
USUAL_KINDS = ("RSA", "P-256", "P-384")
TAKEN_KINDS = "gRPC takes RSA, P-256 and P-384"

_FIRST = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----(.*?)-----END ", re.DOTALL)


def read_pem(path: str | Path) -> bytes:
    """What gRPC is to be given. Raises OSError, for a pipe too: it could be read but once, and one
    that nobody writes to would be waited for."""
    if Path(path).is_fifo():
        raise OSError(errno.ESPIPE, "it is a pipe, and not a file", str(path))
    # Some editors put it first. OpenSSL skips it, gRPC finds no certificate then.
    return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)


def check_certificates(path: str | Path) -> None:
    """Raises ssl.SSLError where there is none, OSError."""
    context = _context()
    context.load_verify_locations(path)
    if not context.cert_store_stats()["x509"]:  # lists of revoked ones alone
        raise ssl.SSLError("no certificate")


def check_pair(cert: str | Path, key: str | Path) -> None:
    """Raises ssl.SSLError where these are no certificate and its key, OSError."""
    if b"-BEGIN TRUSTED CERTIFICATE-" in Path(cert).read_bytes():  # gRPC takes it of a CA alone
        only = "it is of the form TRUSTED CERTIFICATE, made by openssl x509 -trustout: omit that"
        raise OSError(errno.EINVAL, only, str(cert))
    # A key with a passphrase would have OpenSSL ask the terminal.
    _context().load_cert_chain(cert, key, password=lambda: b"")


def key_kind(cert: bytes) -> str:
    """Of a file that `check_pair` has seen: what kind of key its first certificate has; "" for one
    that gRPC can't use at all."""
    found = _FIRST.search(cert)
    der = binascii.a2b_base64(found[1]) if found else b""
    return next((kind for kind, begins in _KINDS.items() if bytes.fromhex(begins) in der), "")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context
