"""The server's certificates: read again when their files change, without a restart."""

import logging
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
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


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What the files held when they were read."""

    files: TlsFiles
    signature: Signature
    configuration: grpc.ServerCertificateConfiguration
    begins: float  # seconds since 1970
    ends: float

    def untimely(self) -> str:
        """What is wrong with its dates now; "" for nothing."""
        now = time.time()
        if now < self.begins:
            return f"the certificate in {self.files.cert} is not valid before {_utc(self.begins)}"
        if now > self.ends:
            return f"the certificate in {self.files.cert} expired at {_utc(self.ends)}"
        return ""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Raises InvalidRequest if the files can't be used as they are now. A certificate that is not
    valid now is shown all the same, and the log says so.

    Later they are looked at before each handshake: a pair that does not fit together, as in the
    middle of a renewal, or one that is not valid now, is not taken, and the last good one stays.
    What is wrong is said once, for callers could fill the log.
    """
    shown = _read(files)
    said = ""

    def tell(wrong: str) -> None:
        nonlocal said
        if wrong and wrong != said:
            log.error("%s", wrong)
        said = wrong

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            read = shown if _signature(files) == shown.signature else _read(files)
            untimely = read.untimely()
            if untimely and not shown.untimely():
                raise InvalidRequest(untimely)
        except (InvalidRequest, OSError) as error:
            tell(f"the certificate stays as it was: {error}")
            return None
        tell(untimely and f"{untimely}: callers refuse it")
        if read is shown:
            return None
        shown = read
        log.info("the certificate was read again")
        return shown.configuration

    fetch()  # says what is wrong with its dates
    return grpc.dynamic_ssl_server_credentials(
        shown.configuration, fetch, require_client_authentication=files.client_ca is not None
    )


def _read(files: TlsFiles) -> Certificate:
    try:
        before = _signature(files)
        configuration = grpc.ssl_server_certificate_configuration(
            [(files.key.read_bytes(), files.cert.read_bytes())],
            files.client_ca.read_bytes() if files.client_ca else None,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A key with a passphrase would have OpenSSL ask the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
        if files.client_ca:
            context.load_verify_locations(files.client_ca)
        begins, ends = _validity(files.cert)
        if _signature(files) != before:
            raise InvalidRequest("the certificate files changed while they were read")
    except OSError as error:  # ssl.SSLError too
        names, why = ", ".join(map(str, files.all)), _why(error, files)
        raise InvalidRequest(f"the TLS files {names} can't be used: {why}") from error
    return Certificate(
        files=files, signature=before, configuration=configuration, begins=begins, ends=ends
    )


def _why(error: OSError, files: TlsFiles) -> str:
    """With the name of the file that is wrong, which OpenSSL never says; often it has no reason."""
    if not isinstance(error, ssl.SSLError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    for path in (files.cert, files.client_ca):
        try:
            if path is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
        except OSError:
            return f"{path} holds no certificate in PEM, or not the whole of it"
    return error.reason or f"{files.key} holds no key in PEM, or one with a passphrase"


def _validity(cert: Path) -> tuple[float, float]:
    """From when to when, in seconds since 1970. By CPython's own decoder, which has no public name
    for a certificate that no connection has shown; a package for it is more than the server has."""
    fields = ssl._ssl._test_decode_cert(str(cert))  # type: ignore[attr-defined]
    begins, ends = (ssl.cert_time_to_seconds(fields[name]) for name in ("notBefore", "notAfter"))
    return begins, ends


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")


def _signature(files: TlsFiles) -> Signature:
    stats = [path.stat() for path in files.all]
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
