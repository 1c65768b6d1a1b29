"""A cluster's own PostgreSQL and RabbitMQ, as ``anynode init`` makes them, for tests of them.

``own_services`` is one of each for the whole session; a test that harms them makes its own.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.cluster import services
from appliance.cluster.management import Access
from appliance.cluster.services import postgresql, rabbitmq
from appliance.errors import ConfigError
from tests.services.postgresql import free_port

ADDRESS = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class OwnServices:
    """Services that run, and what it takes to reach them."""

    state_dir: Path
    store: postgresql.Settings
    bus: rabbitmq.Settings

    @property
    def authority(self) -> Path:
        """The certificate that vouches for both."""
        return services.tls_of(self.state_dir).authority

    @property
    def tls(self) -> ssl.SSLContext:
        """What a node meets the broker with."""
        files = services.tls_of(self.state_dir)
        context = ssl.create_default_context(cafile=str(files.authority))
        context.load_cert_chain(files.certificate, files.key)
        return context

    @property
    def access(self) -> Access:
        """How the broker is administered."""
        return Access(
            urls=(self.bus.admin_url,), vhost=rabbitmq.VHOST, authority=self.authority.read_text()
        )

    @property
    def store_url(self) -> str:
        """The URL of the store, with what checks the server."""
        return f"{self.store.url}&sslrootcert={self.authority}"


def require_services() -> None:
    """Skip the test when this machine lacks one of both, or may not start them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        postgresql.check_installed()
        rabbitmq.check_installed()
    except ConfigError as error:
        pytest.skip(str(error))


def write_certificates(folder: Path) -> None:
    """Make an authority and the certificate of a node on loopback."""
    folder.mkdir(mode=0o700, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign("authority", authority_key, "authority", authority_key)
    key = ec.generate_private_key(ec.SECP256R1())
    node = _sign("node", key, "authority", authority_key)
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(authority.public_bytes(pem))
    (folder / "node.pem").write_bytes(node.public_bytes(pem))
    (folder / "node.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "node.key").chmod(0o600)


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address(ADDRESS))
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@contextmanager
def state_folder() -> Iterator[Path]:
    """Make a state folder for services; it ends with what runs there."""
    folder = Path(tempfile.mkdtemp(prefix="anynode-own-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        services.stop(folder, is_orderly=False)
        shutil.rmtree(folder)


@contextmanager
def running() -> Iterator[OwnServices]:
    """Run both for a while."""
    require_services()
    with state_folder() as folder:
        write_certificates(folder / "cluster")
        tls = services.tls_of(folder)
        store = services.store_of(folder).make(address=ADDRESS, port=free_port(), tls=tls)
        bus = services.broker_of(folder).make(
            address=ADDRESS, port=free_port(), admin_port=free_port(), tls=tls
        )
        yield OwnServices(state_dir=folder, store=store, bus=bus)


@pytest.fixture(scope="session")
def own_services() -> Iterator[OwnServices]:
    """Both, shared by all tests that do not harm them."""
    with running() as found:
        yield found
