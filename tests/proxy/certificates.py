"""An authority and certificates of members, for tests that need TLS on both sides."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

from appliance.cluster import certificates
from appliance.cluster.authority import Authority
from appliance.cluster.membership import AUTHORITY, CERTIFICATE, KEY


class TestAuthority:
    """Signs certificates of nodes on loopback, and writes them into a folder."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = Authority.make(time.time())
        self.serials: dict[str, str] = {}
        self.path = folder / AUTHORITY
        self.path.write_text(self.authority.text, encoding="ascii")

    def certify(self, node_id: str, *, is_control: bool = True) -> tuple[bytes, str]:
        """Return a new key of a node and its certificate, both PEM."""
        key = certificates.make_key()
        certificate = self.authority.certify(
            key.public_key(),
            node_id,
            is_control=is_control,
            addresses=["127.0.0.1"],
            now=time.time(),
        )
        self.serials[node_id] = certificates.identity_of(certificate).serial
        return certificates.key_text(key), certificates.text_of(certificate)

    def write_node(self, folder: Path, node_id: str, *, is_control: bool = True) -> str:
        """Write what makes a node a member into its folder; return its certificate."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, certificate = self.certify(node_id, is_control=is_control)
        (folder / AUTHORITY).write_bytes(self.path.read_bytes())
        (folder / KEY).write_bytes(key)
        (folder / KEY).chmod(0o600)
        (folder / CERTIFICATE).write_text(certificate, encoding="ascii")
        return certificate

    def context(self, node_id: str, *, is_server: bool) -> ssl.SSLContext:
        """Return what a node proves its membership with, and checks that of others."""
        key, certificate = self.certify(node_id)
        path = self._folder / f"{node_id}.pem"
        path.write_bytes(key + certificate.encode())
        side = ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(side)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.path)
        context.load_cert_chain(path)
        return context
