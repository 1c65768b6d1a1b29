"""Certificates of nodes: who signs what for whom, and what is believed."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.cluster import certificates
from appliance.cluster.authority import NODE_S, SKEW_S, YEARS_S, Authority
from appliance.cluster.papers import addresses_of
from appliance.errors import ConfigError, Denied, InputError

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make(NOW)


def certify(authority: Authority, *, is_control: bool = True, now: float = NOW) -> x509.Certificate:
    key = certificates.make_key().public_key()
    return authority.certify(
        key, "node-1", is_control=is_control, addresses=["192.0.2.1", "fd00::1"], now=now
    )


@pytest.mark.parametrize("is_control", [True, False])
def test_a_certificate_says_who_and_what_kind(authority: Authority, is_control: bool) -> None:
    made = certify(authority, is_control=is_control)
    identity = certificates.check(made, authority.certificate, NOW)
    assert (identity.node_id, identity.is_control) == ("node-1", is_control)
    assert int(identity.serial, 16) == made.serial_number
    assert identity.ends_at == NOW + NODE_S
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {*usage} == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node-1.node"]


def test_only_control_nodes_vouch_for_addresses(authority: Authority) -> None:
    assert addresses_of(certify(authority)) == ["192.0.2.1", "fd00::1"]
    assert addresses_of(certify(authority, is_control=False)) == []


def test_the_authority_lasts_ten_years_and_signs_nodes_only(authority: Authority) -> None:
    one = authority.certificate
    assert one.not_valid_after_utc.timestamp() == NOW + YEARS_S
    limits = one.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    assert isinstance(one.public_key(), ec.EllipticCurvePublicKey)
    assert len(authority.fingerprint) == 64


def test_another_authority_is_not_believed(authority: Authority) -> None:
    with pytest.raises(Denied, match="has not signed"):
        certificates.check(certify(Authority.make(NOW)), authority.certificate, NOW)


@pytest.mark.parametrize("at", [NOW + NODE_S + 1, NOW - SKEW_S - 1])
def test_it_is_valid_for_its_time_only(authority: Authority, at: float) -> None:
    with pytest.raises(Denied, match="valid until"):
        certificates.check(certify(authority), authority.certificate, at)


def test_clocks_may_differ_by_some_minutes(authority: Authority) -> None:
    certificates.check(certify(authority), authority.certificate, NOW - 600)


def test_it_is_renewed_after_half_of_its_time(authority: Authority) -> None:
    identity = certificates.identity_of(certify(authority))
    assert not identity.is_half_over(NOW + NODE_S * 0.49)
    assert identity.is_half_over(NOW + NODE_S * 0.51)


def signed(authority: Authority, *attributes: tuple[x509.ObjectIdentifier, str]) -> object:
    """Return a certificate of the authority's with that subject."""
    day = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes]))
        .issuer_name(authority.certificate.subject)
        .public_key(certificates.make_key().public_key())
        .serial_number(1)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=1))
        .sign(authority._key, hashes.SHA256())
    )


UNIT, COMMON = NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME


@pytest.mark.parametrize(
    "subject",
    [
        ((COMMON, "node-1"),),
        ((UNIT, "control"),),
        ((COMMON, "node-1"), (UNIT, "root")),
        ((COMMON, "node-1"), (UNIT, "hypervisor"), (UNIT, "control")),
        ((COMMON, "node-1"), (COMMON, "node-2"), (UNIT, "control")),
    ],
)
def test_a_subject_of_another_form_is_no_nodes(
    authority: Authority, subject: tuple[tuple[x509.ObjectIdentifier, str], ...]
) -> None:
    made = signed(authority, *subject)
    assert isinstance(made, x509.Certificate)
    with pytest.raises(Denied, match="no node's"):
        certificates.check(made, authority.certificate, NOW)


def test_a_request_proves_its_key(authority: Authority) -> None:
    key = certificates.make_key()
    read = certificates.read_request(certificates.make_request(key, "other-name"))
    made = authority.certify(read, "node-1", is_control=False, now=NOW)
    assert certificates.same_key(key.public_key(), made)
    assert certificates.identity_of(made).node_id == "node-1", "what it asked for does not count"


def test_a_request_that_was_altered_is_refused() -> None:
    text = certificates.make_request(certificates.make_key(), "node-1")
    lines = text.splitlines()
    middle = lines[2]
    lines[2] = middle[:20] + ("A" if middle[20] != "A" else "B") + middle[21:]
    with pytest.raises(InputError):
        certificates.read_request("\n".join(lines))


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE REQUEST-----\n", "é", "x" * 100_000])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no request"):
        certificates.read_request(text)


@pytest.mark.parametrize("kind", ["rsa", "p384"])
def test_keys_of_other_kinds_are_refused(kind: str) -> None:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    key = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP384R1())
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    text = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(InputError, match="P-256"):
        certificates.read_request(text.decode())


@pytest.mark.parametrize("node_id", ["", "a.b", "x" * 61, "a/b", "*"])
def test_an_id_that_could_be_more_than_a_name_is_refused(
    authority: Authority, node_id: str
) -> None:
    with pytest.raises(InputError):
        authority.certify(certificates.make_key().public_key(), node_id, is_control=False, now=NOW)


def test_an_error_does_not_show_a_key() -> None:
    secret = certificates.key_text(certificates.make_key()).replace(b"M", b"N")
    with pytest.raises(ConfigError) as caught:
        certificates.read_key(secret)
    assert secret[40:80].decode() not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__cause__ is None
