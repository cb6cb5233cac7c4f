"""The server's certificates: read again when their files change, without a restart."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving.errors import InvalidRequest

log = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files. With a client_ca, callers must show a certificate of that authority."""

    cert: Path
    key: Path
    client_ca: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Raises InvalidRequest if the files can't be used as they are now.

    Later they are looked at before each handshake: a pair that does not fit together, as in the
    middle of a renewal, is not taken, and the last good one stays. That is said once, for callers
    could fill the log.
    """
    seen, configuration = _read(files)
    said = ""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen, said
        try:
            if _signature(files) == seen:
                said = ""
                return None
            seen, renewed = _read(files)
        except (InvalidRequest, OSError) as error:
            if str(error) != said:
                said = str(error)
                log.error("the certificate stays as it was: %s", said)
            return None
        said = ""
        log.info("the certificate was read again")
        return renewed

    return grpc.dynamic_ssl_server_credentials(
        configuration, fetch, require_client_authentication=files.client_ca is not None
    )


def _read(files: TlsFiles) -> tuple[Signature, grpc.ServerCertificateConfiguration]:
    try:
        before = _signature(files)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A key with a passphrase would have OpenSSL ask the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
        if files.client_ca:
            context.load_verify_locations(files.client_ca)
        configuration = grpc.ssl_server_certificate_configuration(
            [(files.key.read_bytes(), files.cert.read_bytes())],
            files.client_ca.read_bytes() if files.client_ca else None,
        )
        if _signature(files) != before:
            raise InvalidRequest("the certificate files changed while they were read")
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(map(str, files.all))
        reason = getattr(error, "reason", None) or error.strerror or error
        raise InvalidRequest(f"the TLS files {names} can't be used: {reason}") from error
    return before, configuration


def _signature(files: TlsFiles) -> Signature:
    stats = [path.stat() for path in files.all]
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
