"""What control nodes sign, and who believes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cluster import certificates
from appliance.cluster.authority import NODE_S, Authority
from appliance.cluster.signatures import NodeSigner
from appliance.errors import Denied

NOW = 1_800_000_000.0
MESSAGE = ("cast.compute.n2", "Order", "m-1", b'{"verb":"run"}', int(NOW) + 60)


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.at = now

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def node(folder: Path, authority: Authority, node_id: str, *, is_control: bool) -> NodeSigner:
    """Return a node's signer, with the folder of a member."""
    folder = folder / node_id
    folder.mkdir(exist_ok=True)
    key = certificates.make_key()
    made = authority.certify(key.public_key(), node_id, is_control=is_control, now=NOW)
    (folder / "authority.pem").write_text(authority.text)
    (folder / "node.pem").write_text(certificates.text_of(made))
    (folder / "node.key").write_bytes(certificates.key_text(key))
    return NodeSigner(folder, lambda: REVOKED, Clock())


REVOKED: list[str] = []


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeSigner]:
    folder = tmp_path_factory.mktemp("members")
    authority, other = Authority.make(NOW), Authority.make(NOW)
    (folder / "foreign").mkdir()
    return {
        "c1": node(folder, authority, "c1", is_control=True),
        "h1": node(folder, authority, "h1", is_control=False),
        "foreign": node(folder / "foreign", other, "c1", is_control=True),
    }


def test_a_control_node_is_believed(nodes: dict[str, NodeSigner]) -> None:
    assert nodes["h1"].check(*MESSAGE, nodes["c1"].sign(*MESSAGE)) == "c1"


def test_a_hypervisor_is_not(nodes: dict[str, NodeSigner]) -> None:
    with pytest.raises(Denied, match="no control node"):
        nodes["c1"].check(*MESSAGE, nodes["h1"].sign(*MESSAGE))


def test_a_node_of_another_cluster_is_not(nodes: dict[str, NodeSigner]) -> None:
    with pytest.raises(Denied, match="authority has not signed"):
        nodes["h1"].check(*MESSAGE, nodes["foreign"].sign(*MESSAGE))


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, "cast.compute.n3"), (1, "Report"), (2, "m-2"), (3, b"{}"), (4, int(NOW) + 61)],
)
def test_all_of_it_is_signed(nodes: dict[str, NodeSigner], place: int, value: object) -> None:
    altered: list[Any] = [*MESSAGE, nodes["c1"].sign(*MESSAGE)]
    altered[place] = value
    with pytest.raises(Denied, match="has signed"):
        nodes["h1"].check(*altered)


def test_what_ends_one_part_begins_no_other(nodes: dict[str, NodeSigner]) -> None:
    signature = nodes["c1"].sign("a", "bc", "", b"", 1)
    with pytest.raises(Denied):
        nodes["h1"].check("ab", "c", "", b"", 1, signature)


def test_a_removed_node_is_no_longer_believed(nodes: dict[str, NodeSigner]) -> None:
    signature = nodes["c1"].sign(*MESSAGE)
    nodes["h1"].check(*MESSAGE, signature)
    own = certificates.read_certificate((nodes["c1"]._folder / "node.pem").read_bytes())
    REVOKED.append(certificates.identity_of(own).serial)
    try:
        with pytest.raises(Denied, match="revoked"):
            nodes["h1"].check(*MESSAGE, signature)
    finally:
        REVOKED.clear()


def test_a_certificate_that_ended_since_it_was_first_seen(nodes: dict[str, NodeSigner]) -> None:
    signature = nodes["c1"].sign(*MESSAGE)
    folder = nodes["h1"]._folder
    clock = Clock()
    checker = NodeSigner(folder, tuple, clock)
    assert checker.check(*MESSAGE, signature) == "c1"
    clock.at += NODE_S + 1
    with pytest.raises(Denied, match="ended"):
        checker.check(*MESSAGE, signature)


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=700))
def test_noise_is_refused(nodes: dict[str, NodeSigner], noise: bytes) -> None:
    with pytest.raises(Denied):
        nodes["h1"].check(*MESSAGE, noise)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_an_altered_signature_is_refused(nodes: dict[str, NodeSigner], data: st.DataObject) -> None:
    signature = bytearray(nodes["c1"].sign(*MESSAGE))
    place = data.draw(st.integers(0, 10_000)) % len(signature)
    signature[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Denied):
        nodes["h1"].check(*MESSAGE, bytes(signature))
