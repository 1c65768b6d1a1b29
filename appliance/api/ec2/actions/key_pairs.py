"""Key pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.api.ec2 import errors, ssh_keys
from appliance.api.ec2.action import action
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import check_ids, filters_of, moment, tag_set
from appliance.api.ec2.ssh_keys import PublicKey
from appliance.api.ec2.tagging import tags_of
from appliance.store import Transaction, key_pairs, quotas, tags
from appliance.store.filters import TAGS
from appliance.store.key_pairs import KeyPair

# Printable, and no more: the name becomes the comment of a line that an instance reads.
_NAME = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)


@action()
def create_key_pair(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Make a key pair; its private half is in this reply and nowhere else."""
    if params.get("KeyFormat", "pem") != "pem":
        raise errors.unsupported_operation("Keys are made in the format pem only.")
    name = _checked_name(params["KeyName"])
    wanted_tags = tags_of(params, ["key-pair"]).get("key-pair", {})
    made = ssh_keys.make(params.get("KeyType", ssh_keys.RSA))
    key_pair = _store(call, name, made.public, wanted_tags)
    return _made(key_pair, wanted_tags) | {"KeyMaterial": made.private}


@action()
def import_key_pair(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Take on a public key that was made elsewhere."""
    name = _checked_name(params["KeyName"])
    wanted_tags = tags_of(params, ["key-pair"]).get("key-pair", {})
    public = ssh_keys.read(params["PublicKeyMaterial"])
    return _made(_store(call, name, public, wanted_tags), wanted_tags)


@action(filters=(*key_pairs.FILTERS, *TAGS))
def describe_key_pairs(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Return key pairs by name."""
    names = list(dict.fromkeys(params.get("KeyNames", ())))
    ids = check_ids(params.get("KeyPairIds", ()), "key", "InvalidKeyPairId")

    def read(tx: Transaction) -> tuple[list[KeyPair], dict[str, list[tuple[str, str]]]]:
        found = key_pairs.list_all(tx, call.project_id, filters_of(params))
        if names or ids:
            _all_exist(key_pairs.find(tx, call.project_id, names, ids), names, ids)
            found = [each for each in found if each.name in names or each.key_pair_id in ids]
        return found, tags.of(tx, [each.key_pair_id for each in found])

    found, found_tags = call.read(read)
    with_public = params.get("IncludePublicKey", False)
    return {
        "KeyPairs": [
            {
                "KeyPairId": each.key_pair_id,
                "KeyName": each.name,
                "KeyFingerprint": each.fingerprint,
                "KeyType": each.type,
                "CreateTime": moment(each.created_at),
                "PublicKey": each.public_key if with_public else None,
                "Tags": tag_set(found_tags.get(each.key_pair_id, ())),
            }
            for each in found
        ]
    }


@action()
def delete_key_pair(call: Call, params: dict[str, Any]) -> dict[str, Any]:
    """Delete a key pair; one that does not exist is no error when it is named, as EC2 does."""
    name, key_pair_id = params.get("KeyName", ""), params.get("KeyPairId", "")
    if not name and not key_pair_id:
        raise errors.missing_one_of("KeyName", "KeyPairId")
    ids = check_ids([key_pair_id] if key_pair_id else [], "key", "InvalidKeyPairId")

    def change(tx: Transaction) -> list[KeyPair]:
        found = key_pairs.find(tx, call.project_id, [name] if name else [], ids)
        if name and ids and [(each.name, each.key_pair_id) for each in found] != [(name, *ids)]:
            raise errors.invalid_parameter_combination(
                "KeyName and KeyPairId do not name the same key pair."
            )
        if key_pair_id and not found:
            raise errors.key_pairs_not_found([key_pair_id])
        for each in found:
            key_pairs.remove(tx, each.key_pair_id)
            quotas.give_back(tx, call.project_id, "key_pairs", 1)
        return found

    found = call.change(change, name or key_pair_id)
    return {"Return": True, "KeyPairId": found[0].key_pair_id if found else None}


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise errors.invalid_parameter_value(
            "KeyName", name, "It must be 1 to 255 printable ASCII characters."
        )
    return name


def _all_exist(found: Sequence[KeyPair], names: Sequence[str], ids: Sequence[str]) -> None:
    known = {each.name for each in found} | {each.key_pair_id for each in found}
    missing = [each for each in (*names, *ids) if each not in known]
    if missing:
        raise errors.key_pairs_not_found(missing)


def _store(call: Call, name: str, public: PublicKey, wanted_tags: Mapping[str, str]) -> KeyPair:
    def change(tx: Transaction) -> KeyPair:
        if key_pairs.find(tx, call.project_id, [name]):
            raise errors.key_pair_duplicate(name)
        if not quotas.take(tx, call.project_id, "key_pairs", 1):
            raise errors.Ec2Error(
                "KeyPairLimitExceeded", "The maximum number of key pairs has been reached."
            )
        made = key_pairs.create(
            tx,
            call.project_id,
            name=name,
            kind=public.type,
            fingerprint=public.fingerprint,
            public_key=f"{public.line} {name}",
        )
        tags.add(tx, call.project_id, "key-pair", [made.key_pair_id], wanted_tags)
        return made

    return call.change(change, name)


def _made(key_pair: KeyPair, wanted_tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        "KeyPairId": key_pair.key_pair_id,
        "KeyName": key_pair.name,
        "KeyFingerprint": key_pair.fingerprint,
        "Tags": tag_set(sorted(wanted_tags.items())),
    }
