"""Whether PEM files hold what TLS needs, judged by OpenSSL: gRPC doesn't say what is wrong.

How strong a key must be is not judged: gRPC's own BoringSSL takes some that OpenSSL does not.
"""

import ssl
from pathlib import Path


def check_certificates(path: str | Path) -> None:
    """Raises ssl.SSLError where there is none, OSError."""
    _context().load_verify_locations(path)


def check_pair(cert: str | Path, key: str | Path) -> None:
    """Raises ssl.SSLError where these are no certificate and its key, OSError."""
    # A key with a passphrase would have OpenSSL ask the terminal.
    _context().load_cert_chain(cert, key, password=lambda: b"")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context
