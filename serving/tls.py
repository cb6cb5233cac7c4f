"""The server's certificates: read again when their files change, without a restart."""

import logging
import math
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from serving.errors import InvalidRequest
from serving.pem import TAKEN_KINDS, USUAL_KINDS, check_certificates, check_pair, key_kind, read_pem
from serving.whole_file import stamp_of

log = logging.getLogger(__name__)

# What OpenSSL calls a key of another certificate, of the same kind and of another.
_ANOTHER_KEY = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")

Stamps = tuple[tuple[int, int, int] | None, ...]


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
    stamps: Stamps
    configuration: grpc.ServerCertificateConfiguration
    begins: float  # seconds since 1970; -inf and inf where this Python can't tell
    ends: float
    kind: str  # of its key

    def refused(self) -> str:
        """Why callers, or most of them, refuse it now; "" if they don't."""
        now = time.time()
        if now < self.begins:
            return f"the certificate in {self.files.cert} is not valid before {_utc(self.begins)}"
        if now > self.ends:
            return f"the certificate in {self.files.cert} expired at {_utc(self.ends)}"
        if self.kind not in USUAL_KINDS:
            return f"the certificate in {self.files.cert} has a key of {self.kind}; {TAKEN_KINDS}"
        return ""


class ShownCertificate:
    """What a server shows its callers: of the files as they are now, as far as they can be used.

    They are looked at before each handshake, and whenever `ends` is asked for: a pair that does not
    fit together, as in the middle of a renewal, or one that callers would refuse, is not taken, and
    the last good one stays. What is wrong is said once, for callers could fill the log.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises InvalidRequest if the files can't be used as they are now. A certificate that
        callers refuse is shown all the same, and the log says so."""
        self._files = files
        self._shown = self._given = _read(files)  # _given: what gRPC has by now
        self._said = ""
        self._lock = threading.Lock()  # handshakes, and who asks for the end
        if math.isinf(self._shown.ends):
            log.warning("this Python can't tell when a certificate expires: nobody will be told")
        self._look()  # says why callers refuse it

    @property
    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._given.configuration,
            self._for_handshake,
            require_client_authentication=self._files.client_ca is not None,
        )

    def ends(self) -> float:
        """When it expires, in seconds since 1970."""
        with self._lock:
            self._look()
            return self._shown.ends

    def _for_handshake(self) -> grpc.ServerCertificateConfiguration | None:
        """None: as at the last one."""
        with self._lock:
            self._look()
            if self._given is self._shown:
                return None
            self._given = self._shown
            return self._given.configuration

    def _look(self) -> None:
        shown = self._shown
        try:
            read = shown if _stamps(self._files) == shown.stamps else _read(self._files)
            refused = read.refused()
            if refused and not shown.refused():
                raise InvalidRequest(refused)
        except InvalidRequest as error:
            self._tell(f"the certificate stays as it was: {error}")
            return
        self._tell(refused and f"{refused}: callers refuse it")
        if read is not shown:
            self._shown = read
            log.info("the certificate was read again")

    def _tell(self, wrong: str) -> None:
        if wrong and wrong != self._said:
            log.error("%s", wrong)
        self._said = wrong


def _read(files: TlsFiles) -> Certificate:
    try:
        before = _stamps(files)
        cert = read_pem(files.cert)
        configuration = grpc.ssl_server_certificate_configuration(
            [(read_pem(files.key), cert)],
            read_pem(files.client_ca) if files.client_ca else None,
        )
        check_pair(files.cert, files.key)
        if files.client_ca:
            check_certificates(files.client_ca)
        begins, ends = _validity(files.cert)
        if _stamps(files) != before:
            raise InvalidRequest("the certificate files changed while they were read")
        kind = key_kind(cert)
        if not kind:
            raise InvalidRequest(f"{files.key} holds a key of another kind; {TAKEN_KINDS}")
    except OSError as error:  # ssl.SSLError too
        names, why = ", ".join(map(str, files.all)), _why(error, files)
        raise InvalidRequest(f"the TLS files {names} can't be used: {why}") from error
    return Certificate(
        files=files,
        stamps=before,
        configuration=configuration,
        begins=begins,
        ends=ends,
        kind=kind,
    )


def _why(error: OSError, files: TlsFiles) -> str:
    """With the name of the file that is wrong, which OpenSSL never says; often it has no reason."""
    if not isinstance(error, ssl.SSLError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    for path in (files.cert, files.client_ca):
        try:
            if path is not None:
                check_certificates(path)
        except OSError:
            return f"{path} holds no certificate in PEM, or not the whole of it"
    if error.reason in _ANOTHER_KEY:
        return f"{files.key} is not the key of {files.cert}, whose first must be the server's own"
    return error.reason or f"{files.key} holds no key in PEM, or one with a passphrase"


def _validity(cert: Path) -> tuple[float, float]:
    """From when to when, in seconds since 1970. By CPython's own decoder, which has no public name
    for a certificate that no connection has shown; a package for it is more than the server has.
    A Python without it serves the certificate all the same."""
    decode = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    if decode is None:
        return -math.inf, math.inf
    fields = decode(str(cert))
    begins, ends = (ssl.cert_time_to_seconds(fields[name]) for name in ("notBefore", "notAfter"))
    return begins, ends


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")


def _stamps(files: TlsFiles) -> Stamps:
    return tuple(map(stamp_of, files.all))
