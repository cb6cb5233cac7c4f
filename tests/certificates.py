"""Certificates for tests: an authority, and what it signs for a server or a caller."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """PEM files."""

    cert: Path
    key: Path


class Authority:
    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(self._name, self._name, self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))

    def revoke_none(self) -> bytes:
        """A list of revoked certificates, in PEM."""
        now = datetime.datetime.now(datetime.UTC)
        made = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        made = made.last_update(now).next_update(now + _DAY)
        return made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def sign(
        self,
        name: str,
        names: Sequence[str] | None = (),
        days: tuple[float, float] = (-1, 1),
        key: PrivateKey | None = None,
    ) -> Pair:
        """For `names`, else `localhost` and 127.0.0.1, with `name` as its common name, and for
        that alone where `names` is None, as certificates once were; days: from now, the first
        and the last moment that it is valid; key: else of P-256."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        local = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = _builder(subject, self._name, key.public_key(), days)
        if names is not None:
            valid_for = [_general(one) for one in names] or local
            made = made.add_extension(x509.SubjectAlternativeName(valid_for), critical=False)
        pair = Pair(cert=self._folder / f"{name}.pem", key=self._folder / f"{name}.key")
        pair.cert.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return pair


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if ":" in name else x509.DNSName(name)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey,
    days: tuple[float, float] = (-1, 1),
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
