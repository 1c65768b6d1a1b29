"""Key pairs with real keys: fingerprints are compared with what OpenSSH and OpenSSL say."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from appliance.store import schema
from tests.api.front import Front, code_of, error_of

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def openssh(key: Any) -> bytes:
    return bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )


def spki(key: Any, encoding: Any) -> bytes:
    return bytes(
        key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def rfc4716(key: Any) -> bytes:
    blob = openssh(key).split()[1]
    lines = [blob[at : at + 70] for at in range(0, len(blob), 70)]
    return b"\n".join(
        [
            b"---- BEGIN SSH2 PUBLIC KEY ----",
            b'Comment: "made \\',
            b'elsewhere"',
            *lines,
            b"---- END SSH2 PUBLIC KEY ----",
        ]
    )


def test_a_made_rsa_key_has_the_fingerprint_of_its_private_half(ec2: Any) -> None:
    made = ec2.create_key_pair(KeyName="one")
    key = serialization.load_pem_private_key(made["KeyMaterial"].encode(), None)
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    assert made["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert made["KeyFingerprint"].replace(":", "") == hashlib.sha1(der).hexdigest()
    assert made["KeyPairId"].startswith("key-")
    [listed] = ec2.describe_key_pairs(KeyNames=["one"], IncludePublicKey=True)["KeyPairs"]
    assert listed["KeyFingerprint"] == made["KeyFingerprint"]
    assert listed["KeyType"] == "rsa"
    assert listed["PublicKey"].encode() == openssh(key) + b" one"


def test_a_made_ed25519_key_has_the_fingerprint_of_openssh(ec2: Any) -> None:
    made = ec2.create_key_pair(KeyName="two", KeyType="ed25519")
    key = serialization.load_ssh_private_key(made["KeyMaterial"].encode(), None)
    blob = base64.b64decode(openssh(key).split()[1])
    assert base64.b64decode(made["KeyFingerprint"]) == hashlib.sha256(blob).digest()


def test_the_private_half_is_kept_nowhere(front: Front, ec2: Any) -> None:
    made = ec2.create_key_pair(KeyName="one")
    middle = made["KeyMaterial"].splitlines()[5]
    assert middle not in repr(front.snapshot())


@pytest.mark.parametrize(
    "material",
    [
        openssh(RSA_KEY),
        openssh(RSA_KEY) + b" somebody@somewhere\n",
        rfc4716(RSA_KEY),
        spki(RSA_KEY, serialization.Encoding.PEM),
        spki(RSA_KEY, serialization.Encoding.DER),
        base64.encodebytes(spki(RSA_KEY, serialization.Encoding.DER)),
    ],
    ids=["openssh", "comment", "rfc4716", "pem", "der", "base64-der"],
)
def test_an_imported_rsa_key_has_one_fingerprint_in_all_forms(ec2: Any, material: bytes) -> None:
    made = ec2.import_key_pair(KeyName="mine", PublicKeyMaterial=material)
    digest = hashlib.md5(spki(RSA_KEY, serialization.Encoding.DER)).hexdigest()
    assert made["KeyFingerprint"].replace(":", "") == digest
    [listed] = ec2.describe_key_pairs(IncludePublicKey=True)["KeyPairs"]
    assert listed["PublicKey"].encode() == openssh(RSA_KEY) + b" mine"


def test_an_imported_ed25519_key_is_taken(ec2: Any) -> None:
    made = ec2.import_key_pair(KeyName="mine", PublicKeyMaterial=openssh(ED_KEY))
    blob = base64.b64decode(openssh(ED_KEY).split()[1])
    assert base64.b64decode(made["KeyFingerprint"]) == hashlib.sha256(blob).digest()


@pytest.mark.parametrize(
    "material",
    [
        b"",
        b"not a key",
        b"ssh-rsa",
        b"ssh-rsa AAAA",
        pytest.param(openssh(RSA_KEY)[:60], id="cut off"),
        openssh(RSA_KEY) + b"\nssh-rsa AAAA second",
        b'command="id" ' + openssh(RSA_KEY),
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        b"---- BEGIN SSH2 PUBLIC KEY ----\n!\n---- END SSH2 PUBLIC KEY ----",
        b"\xff\xfe\x00",
        b"A" * 20000,
        openssh(ec.generate_private_key(ec.SECP256R1())),
        spki(dsa.generate_private_key(1024), serialization.Encoding.PEM),
        RSA_KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    ],
)
def test_what_is_no_public_key_is_refused(front: Front, ec2: Any, material: bytes) -> None:
    before = front.snapshot()
    code = code_of(ec2.import_key_pair, KeyName="mine", PublicKeyMaterial=material)
    assert code in ("InvalidKey.Format", "MissingParameter")
    assert front.snapshot() == before


@pytest.mark.parametrize(
    "name", ["a\nb", " a", "a ", "é", "x" * 256, "a\tb", "\x7f", "a\rssh-rsa AAAA evil"]
)
def test_hostile_names_are_refused(front: Front, ec2: Any, name: str) -> None:
    before = front.snapshot()
    assert code_of(ec2.create_key_pair, KeyName=name) == "InvalidParameterValue"
    code = code_of(ec2.import_key_pair, KeyName=name, PublicKeyMaterial=openssh(ED_KEY))
    assert code == "InvalidParameterValue"
    assert front.snapshot() == before


def test_a_name_is_taken_once(front: Front, ec2: Any) -> None:
    ec2.import_key_pair(KeyName="x" * 255, PublicKeyMaterial=openssh(ED_KEY))
    refused = error_of(ec2.create_key_pair, KeyName="x" * 255)
    assert refused["Code"] == "InvalidKeyPair.Duplicate"
    other = front.client(front.make_project("other"))
    other.import_key_pair(KeyName="x" * 255, PublicKeyMaterial=openssh(ED_KEY))


def test_deleting_is_silent_about_a_name_that_is_not_there(front: Front, ec2: Any) -> None:
    made = ec2.import_key_pair(KeyName="mine", PublicKeyMaterial=openssh(ED_KEY))
    assert front.quota("key_pairs") == 1
    deleted = ec2.delete_key_pair(KeyName="mine")
    assert deleted["Return"] is True
    assert deleted["KeyPairId"] == made["KeyPairId"]
    assert ec2.delete_key_pair(KeyName="mine")["Return"] is True
    assert front.quota("key_pairs") == 0
    assert code_of(ec2.delete_key_pair, KeyPairId=made["KeyPairId"]) == "InvalidKeyPair.NotFound"
    assert code_of(ec2.delete_key_pair) == "MissingParameter"


def test_name_and_id_together_must_mean_one_key(front: Front, ec2: Any) -> None:
    one = ec2.import_key_pair(KeyName="one", PublicKeyMaterial=openssh(ED_KEY))["KeyPairId"]
    two = ec2.import_key_pair(KeyName="two", PublicKeyMaterial=openssh(ED_KEY))["KeyPairId"]
    before = front.snapshot()
    for name, key_pair_id in (("one", two), ("gone", two), ("one", "key-0123456789abcdef0")):
        code = code_of(ec2.delete_key_pair, KeyName=name, KeyPairId=key_pair_id)
        assert code == "InvalidParameterCombination"
        assert front.snapshot() == before
    assert ec2.delete_key_pair(KeyName="one", KeyPairId=one)["KeyPairId"] == one
    assert [each["KeyName"] for each in ec2.describe_key_pairs()["KeyPairs"]] == ["two"]
    assert front.quota("key_pairs") == 1


def test_another_projects_keys_do_not_exist(front: Front, ec2: Any) -> None:
    made = ec2.import_key_pair(KeyName="mine", PublicKeyMaterial=openssh(ED_KEY))
    other = front.client(front.make_project("other"))
    assert other.describe_key_pairs()["KeyPairs"] == []
    assert code_of(other.describe_key_pairs, KeyNames=["mine"]) == "InvalidKeyPair.NotFound"
    assert code_of(other.delete_key_pair, KeyPairId=made["KeyPairId"]) == "InvalidKeyPair.NotFound"
    assert ec2.describe_key_pairs(KeyNames=["mine"])["KeyPairs"]


def test_filters_and_tags(ec2: Any) -> None:
    tags = [{"ResourceType": "key-pair", "Tags": [{"Key": "for", "Value": "tests"}]}]
    ec2.import_key_pair(KeyName="a_1", PublicKeyMaterial=openssh(ED_KEY), TagSpecifications=tags)
    ec2.import_key_pair(KeyName="ab1", PublicKeyMaterial=openssh(RSA_KEY))

    def names(name: str, *values: str) -> list[str]:
        found = ec2.describe_key_pairs(Filters=[{"Name": name, "Values": list(values)}])
        return [each["KeyName"] for each in found["KeyPairs"]]

    assert names("key-name", "a_1") == ["a_1"]
    assert names("key-name", "a*") == ["a_1", "ab1"]
    assert names("key-name", "A*") == []
    assert names("tag:for", "te?ts") == ["a_1"]
    assert names("tag-key", "for") == ["a_1"]
    assert code_of(ec2.describe_key_pairs, Filters=[{"Name": "x", "Values": ["y"]}]) == (
        "InvalidParameterValue"
    )


def test_the_waiter_of_boto3_finds_the_key(ec2: Any) -> None:
    ec2.import_key_pair(KeyName="mine", PublicKeyMaterial=openssh(ED_KEY))
    ec2.get_waiter("key_pair_exists").wait(KeyNames=["mine"], WaiterConfig={"MaxAttempts": 1})


def test_the_quota_holds(front: Front, ec2: Any) -> None:
    table = schema.quotas
    front.change(
        lambda tx: tx.execute(
            table.update().where(table.c.resource == "key_pairs").values(ceiling=0)
        )
    )
    code = code_of(ec2.import_key_pair, KeyName="mine", PublicKeyMaterial=openssh(ED_KEY))
    assert code == "KeyPairLimitExceeded"
    assert ec2.describe_key_pairs()["KeyPairs"] == []
