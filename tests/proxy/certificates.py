"""An authority and certificates of members, for tests that need TLS on both sides."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.cluster.membership import AUTHORITY, CERTIFICATE, KEY


class TestAuthority:
    """Signs certificates of nodes on loopback, and writes them into a folder."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.serials: dict[str, int] = {}
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority")
        self.path = folder / "authority.pem"
        self.path.write_bytes(_pem(self._sign(self._name, self._key, is_authority=True)))

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def certify(self, node_id: str) -> tuple[bytes, bytes]:
        """Return a new key of a node and its certificate, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(node_id), key)
        self.serials[node_id] = certificate.serial_number
        text = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return text, _pem(certificate)

    def write_node(self, folder: Path, node_id: str) -> None:
        """Write what makes a node a member into its folder."""
        folder.mkdir(parents=True, exist_ok=True)
        key, certificate = self.certify(node_id)
        (folder / AUTHORITY).write_bytes(self.path.read_bytes())
        (folder / KEY).write_bytes(key)
        (folder / CERTIFICATE).write_bytes(certificate)

    def context(self, node_id: str, *, is_server: bool) -> ssl.SSLContext:
        """Return what a node proves its membership with, and checks that of others."""
        key, certificate = self.certify(node_id)
        path = self._folder / f"{node_id}.pem"
        path.write_bytes(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.path)
        context.load_cert_chain(path)
        return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
