"""The cluster's authority: it signs the certificates that make nodes members.

Its certificate is for everybody to see; its key lies sealed in the store, for control nodes.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.cluster import certificates
from appliance.errors import ConfigError, InputError
from appliance.seal import Seal
from appliance.store import Transaction, cluster_facts, cluster_secrets

KEY = "authority-key"
"""The name of the sealed secret."""

YEARS_S = 10 * 365 * 86400.0
NODE_S = 365 * 86400.0

SKEW_S = 3600.0
"""Seconds by which a certificate begins earlier than it was made: clocks differ."""

_NODE_ID = re.compile(r"[A-Za-z0-9-]{1,60}")


class Authority:
    """Signs certificates of nodes."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def make(cls, now: float) -> Authority:
        """Make one, with a new key."""
        key = certificates.make_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Anynode cluster")])
        usage = _usage(signs_certificates=True)
        builder = (
            _builder(key.public_key(), now, YEARS_S)
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @property
    def text(self) -> str:
        """The certificate as PEM."""
        return certificates.text_of(self.certificate)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate, hexadecimal."""
        return certificates.fingerprint(self.certificate)

    def certify(
        self,
        key: ec.EllipticCurvePublicKey,
        node_id: str,
        *,
        is_control: bool,
        addresses: Sequence[str] = (),
        now: float,
    ) -> x509.Certificate:
        """Return a certificate of a node, valid for a year.

        A hypervisor's vouches for no address, whatever it says of itself: what is met by address,
        the store and the broker, is on control nodes. Each is met by ``<node id>.node``.

        :raises InputError: the id could not be part of a name.
        """
        if not _NODE_ID.fullmatch(node_id):
            raise InputError(f"{node_id!r} is no id of a node.")
        unit = certificates.CONTROL if is_control else certificates.HYPERVISOR
        names: list[x509.GeneralName] = [x509.DNSName(certificates.server_name(node_id))]
        names += [_general_name(one) for one in addresses if one and is_control]
        builder = (
            _builder(key, now, NODE_S)
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
                        x509.NameAttribute(NameOID.COMMON_NAME, node_id),
                    ]
                )
            )
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        return builder.sign(self._key, hashes.SHA256())


def keep(tx: Transaction, seal: Seal, authority: Authority) -> None:
    """Store an authority, its key sealed."""
    cluster_secrets.put(tx, seal, KEY, certificates.key_text(authority._key))
    cluster_facts.put(tx, cluster_facts.AUTHORITY, authority.text)


def find(tx: Transaction, seal: Seal) -> Authority | None:
    """Return the cluster's authority; ``None`` where the store belongs to no cluster.

    :raises ConfigError: its key cannot be opened on this node.
    """
    key, text = cluster_secrets.find(tx, seal, KEY), cluster_facts.find(tx, cluster_facts.AUTHORITY)
    if key is None or text is None:
        return None
    return Authority(certificates.read_key(key), certificates.read_certificate(text))


def get(tx: Transaction, seal: Seal) -> Authority:
    """Return the cluster's authority.

    :raises ConfigError: the store belongs to no cluster, or its key cannot be opened here.
    """
    found = find(tx, seal)
    if found is None:
        raise ConfigError("This store belongs to no cluster.", hint="`anynode init` makes one.")
    return found


def _builder(key: ec.EllipticCurvePublicKey, now: float, valid_s: float) -> x509.CertificateBuilder:
    begin = datetime.datetime.fromtimestamp(now - SKEW_S, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(seconds=valid_s + SKEW_S))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        return x509.DNSName(address)
    except ValueError as error:
        raise InputError(f"{address!r} is no address of a node.") from error


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
