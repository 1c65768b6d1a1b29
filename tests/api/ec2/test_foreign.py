"""T30: every action, asked by everybody who may not, about what belongs to another project."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import msgspec
import pytest
from botocore import UNSIGNED, xform_name
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError
from sqlalchemy import event

from appliance.api import policy
from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.call import REPEATABLE_S
from appliance.config import Config, QuotaSettings
from appliance.store import audit, identity
from tests.api.ec2.foreign import CASES, GHOSTS, NOTHING, OF_ONE, Case, filled, make_belongings
from tests.api.front import Front, Keys

AMPLE = QuotaSettings(instances=1000, vcpus=10_000, memory_mib=10**8, key_pairs=1000)
FOREIGN = sorted(name for name, cases in CASES.items() if cases[0].is_foreign)


class Place:
    """Two projects on one API: one owns things, the other asks for them."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.owner = front.make_key("demo", "owner", "admin")
        self.reader = front.make_key("demo", "rita", "reader")
        self.disabled = front.make_key("demo", "former", "admin")
        front.change(lambda tx: identity.enable_user(tx, "former", is_enabled=False))
        self.unknown = Keys(access_key_id="AKIAAAAAAAAAAAAAAAAA", secret="s", project_id="")
        front.make_project("tenant")
        self.tenant = front.make_key("tenant", "rival", "admin")
        self.theirs = make_belongings(front, self.owner, "secretive")
        self.own = make_belongings(front, self.tenant, "rivals")
        self.vpc_id = front.client().describe_vpcs()["Vpcs"][0]["VpcId"]
        self.taken: list[str] = []
        self.sent: Any = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._state: dict[str, Any] | None = None
        event.listen(front.store.engine, "before_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.taken.append(statement)

    def call(self, action: str, keys: Keys | None, params: dict[str, Any]) -> dict[str, Any]:
        """Return a reply without what differs from call to call, or code and message."""
        self.taken.clear()
        service = "sts" if action == "GetCallerIdentity" else "ec2"
        try:
            reply = getattr(self._client(keys, service), xform_name(action))(**params)
        except ClientError as error:
            return {"Error": {k: error.response["Error"][k] for k in ("Code", "Message")}}
        reply.pop("ResponseMetadata")
        return dict(reply)

    def _client(self, keys: Keys | None, service: str) -> Any:
        name = (keys.access_key_id if keys else "", service)
        if name not in self._clients:
            made = self.front.client(keys, service=service) if keys else self._stranger(service)
            made.meta.events.register("before-send", self._keep)
            self._clients[name] = made
        return self._clients[name]

    def _keep(self, request: Any, **_: Any) -> None:
        self.sent = request

    def replay(self) -> tuple[int, str]:
        """Send the bytes of the last request again; return status and body."""
        headers = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in self.sent.headers.items()
        }
        again = urllib.request.Request(
            self.sent.url, data=self.sent.body.encode(), headers=headers, method="POST"
        )
        try:
            with urllib.request.urlopen(again, timeout=20) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def _stranger(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.front.url,
            region_name="local-1",
            config=ClientConfig(signature_version=UNSIGNED, retries={"max_attempts": 0}),
        )

    def reads(self) -> list[str]:
        """Return the queries of the last call."""
        return [statement for statement in self.taken if statement.startswith("SELECT")]

    def names(self, of: dict[str, str]) -> dict[str, str]:
        """Return what stands in the cases, with one project's things as the foreign ones."""
        return {
            **{f"own_{name}": value for name, value in self.own.items()},
            "public_image": self.front.image.image_id,
            "vpc": self.vpc_id,
            **of,
        }

    def ghosts(self) -> dict[str, str]:
        """Return the same names for what never existed."""
        return self.names({**GHOSTS, "project": "987654321098", "mark": "nobodys"})

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Make sure that nothing changes, but that requests were answered."""
        if self._state is None:
            self._state = self._snapshot()
        before = self._state
        self._state = None
        yield
        assert self._snapshot() == before
        self._state = before

    def _snapshot(self) -> dict[str, Any]:
        return {k: v for k, v in self.front.snapshot().items() if k != "handled"}

    def may_change(self) -> None:
        """Know that what is asked next changes something."""
        self._state = None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    logging.getLogger("appliance.api").setLevel(logging.WARNING)
    front = Front(tmp_path_factory.mktemp("foreign"), Config(quota=AMPLE))
    yield Place(front)
    logging.getLogger("appliance.api").setLevel(logging.NOTSET)
    front.close()


def anonymized(answer: dict[str, Any], names: dict[str, str]) -> str:
    """Return an answer as text in which what was named is called by what it is."""
    text = msgspec.json.encode(answer, enc_hook=str).decode()
    for name, value in sorted(names.items(), key=lambda item: -len(item[1])):
        text = text.replace(value, f"{{{name}}}")
    return text


def code_in(answer: dict[str, Any]) -> str:
    return str(answer.get("Error", {}).get("Code", NOTHING))


def is_expected(case: Case, code: str) -> bool:
    return code == case.answer if case.answer else code.endswith("NotFound") or code == "InvalidID"


def test_t30_every_action_has_its_cases() -> None:
    assert set(CASES) == set(ACTIONS) | {"GetCallerIdentity"}
    assert set(CASES) == set(policy.NEEDED)


@pytest.mark.parametrize("action", FOREIGN)
def test_t30_what_another_project_owns_does_not_exist(place: Place, action: str) -> None:
    theirs, ghosts = place.names(place.theirs), place.ghosts()
    with place.unchanged():
        for case in CASES[action]:
            about_theirs, about_ghosts = filled(case.params, theirs), filled(case.params, ghosts)
            found = place.call(action, place.tenant, about_theirs)
            as_found = list(place.taken)
            missing = place.call(action, place.tenant, about_ghosts)
            assert is_expected(case, code_in(found)), (case.params, found)
            assert anonymized(found, theirs) == anonymized(missing, ghosts), case.params
            assert place.taken == as_found, case.params


@pytest.mark.parametrize("action", sorted(name for name in CASES if name.startswith("Describe")))
def test_t30_lists_show_nothing_of_others(place: Place, action: str) -> None:
    params = filled(OF_ONE.get(action, {}), place.names({}))
    told = str(place.call(action, place.tenant, params))
    assert "'Error'" not in told
    for value in place.theirs.values():
        assert value not in told


@pytest.mark.parametrize("action", sorted(CASES))
def test_t30_a_reader_reads_and_no_more(place: Place, action: str) -> None:
    with place.unchanged():
        for params in place_params(place, action):
            code = code_in(place.call(action, place.reader, params))
            if policy.is_change(action):
                assert code == "UnauthorizedOperation", params
            else:
                assert code not in ("UnauthorizedOperation", "AuthFailure"), params


@pytest.mark.parametrize("action", sorted(CASES))
def test_t30_who_is_disabled_is_like_who_never_was(place: Place, action: str) -> None:
    with place.unchanged():
        for params in place_params(place, action):
            disabled = place.call(action, place.disabled, params)
            as_disabled = place.reads()
            never = place.call(action, place.unknown, params)
            assert code_in(disabled) == "AuthFailure"
            assert disabled == never
            assert as_disabled == place.reads()


@pytest.mark.parametrize("action", sorted(CASES))
def test_t30_who_does_not_sign_is_told_to(place: Place, action: str) -> None:
    with place.unchanged():
        for params in place_params(place, action):
            code = code_in(place.call(action, None, params))
            assert code == "MissingAuthenticationToken"
            assert place.reads() == []


def place_params(place: Place, action: str) -> list[dict[str, Any]]:
    """Return the parameters of an action's cases, about what the owner has."""
    return [filled(case.params, place.names(place.theirs)) for case in CASES[action]]


@pytest.mark.parametrize("action", sorted(CASES))
def test_t28_t30_its_owner_is_served_and_a_replay_of_the_change_is_refused(
    place: Place, action: str
) -> None:
    """Also that each change has one line in the audit log."""
    case = CASES[action][0]
    is_change = policy.is_change(action)
    things = place.theirs
    place.may_change()
    if is_change and case.is_foreign:
        things = make_belongings(place.front, place.owner, f"fresh-{action.lower()}")
    if action == "DeleteSecurityGroup":
        place.front.make_terminated([things["instance"], things["stopped"]])

    def last() -> int:
        found = place.front.store.read(lambda tx: audit.find(tx, limit=1))
        return found[-1].number if found else 0

    before = last()
    answer = place.call(action, place.owner, filled(case.params, place.names(things)))
    assert code_in(answer) == NOTHING, answer
    entries = place.front.store.read(lambda tx: audit.find(tx, after=before, limit=10))
    place.front.clock.offset_s = REPEATABLE_S + 1
    try:
        with place.unchanged():
            status, body = place.replay()
    finally:
        place.front.clock.offset_s = 0.0
    if not is_change:
        assert entries == []
        assert status == 200
        return
    assert (status, "RequestExpired" in body) == (400, True)
    [entry] = entries
    assert (entry.action, entry.result, entry.actor) == (action, audit.OK, "owner")
    assert entry.access_key_id == place.owner.access_key_id
    assert entry.project_id == place.owner.project_id
    assert entry.subject
