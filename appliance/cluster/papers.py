"""What makes the first node of a cluster its member."""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.cluster import authority as authorities
from appliance.cluster import certificates, decided, services, settings
from appliance.cluster.authority import Authority
from appliance.config import Config
from appliance.errors import AnynodeError
from appliance.files import write_whole
from appliance.messages import GetMembers
from appliance.seal import Seal
from appliance.store import Transaction, members

_AUTHORITY, _CERTIFICATE, _KEY = "authority.pem", "node.pem", "node.key"


class ClusterPapers:
    """The papers of a founding, see :class:`appliance.cluster.founding.Papers`."""

    def certify(
        self, tx: Transaction, sealing: Seal, folder: Path, address: str, node_id: str
    ) -> None:
        """Put authority, certificate and key into a folder; those that fit already stay."""
        authority = authorities.find(tx, sealing)
        if authority is None:
            authority = Authority.make(tx.now)
            authorities.keep(tx, sealing, authority)
        write_papers(folder, authority, address, node_id, tx.now)

    def write_settings(self, tx: Transaction, folder: Path, config: Config, node_id: str) -> None:
        """Write down, here and in the cluster's store, what the node goes by from now on."""
        from appliance import seal

        sealing = seal.load(seal.key_path(config.state_dir))
        what = decided.from_config(
            config,
            bus_is_ours=services.broker_of(config.state_dir).exists,
            store_is_ours=services.store_of(config.state_dir).exists,
        )
        decided.keep(tx, sealing, what)
        certificate = (folder / _CERTIFICATE).read_text(encoding="ascii")
        place = decided.joined_address(config.cluster.address, config.cluster.port)
        members.certify(tx, node_id, certificate=certificate, is_control=True, address=place)
        revision = members.changed(tx)
        known = members.answer(tx, GetMembers(node_id=node_id, known_revision=-1))
        own = next(one for one in known.members if one.node_id == node_id)
        write_whole(folder / "members.json", msgspec.json.encode(known))
        told = decided.settings_of(what, own, revision, is_control=True, bus_url=config.bus.url)
        settings.write(folder, told)

    def in_force(self, config: Config) -> Config:
        """Return the settings of a node with what was written down for it."""
        return settings.overlay(config)


def write_papers(
    folder: Path, authority: Authority, address: str, node_id: str, now: float
) -> None:
    """Put the papers of a control node into a folder, unless they are there and fit.

    The certificate last: where it fits the others do.
    """
    if _fits(folder, authority, address, node_id, now):
        return
    key = read_or_make_key(folder)
    certificate = authority.certify(
        key.public_key(), node_id, is_control=True, addresses=[address], now=now
    )
    write_whole(folder / _AUTHORITY, authority.text.encode(), mode=0o644)
    write_whole(folder / _CERTIFICATE, certificates.text_of(certificate).encode(), mode=0o644)


def read_or_make_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key of a node in a folder, made the first time.

    :raises ConfigError: the one that is there is none.
    """
    path = folder / _KEY
    try:
        return certificates.read_key(path.read_bytes())
    except FileNotFoundError:
        key = certificates.make_key()
        write_whole(path, certificates.key_text(key))
        return key


def _fits(folder: Path, authority: Authority, address: str, node_id: str, now: float) -> bool:
    try:
        certificate = certificates.read_certificate((folder / _CERTIFICATE).read_bytes())
        known = certificates.read_certificate((folder / _AUTHORITY).read_bytes())
        key = certificates.read_key((folder / _KEY).read_bytes())
        identity = certificates.check(certificate, authority.certificate, now)
    except (OSError, AnynodeError):
        return False
    return (
        known == authority.certificate
        and certificates.same_key(key.public_key(), certificate)
        and identity.node_id == node_id
        and identity.is_control
        and address in addresses_of(certificate)
    )


def addresses_of(certificate: x509.Certificate) -> list[str]:
    """Return the IP addresses that a certificate vouches for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(one) for one in names.value.get_values_for_type(x509.IPAddress)]
