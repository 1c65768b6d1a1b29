"""Access keys against botocore's own signer, and the contract of the group."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import botocore.auth
import msgspec
import pytest
from anynode_auth_accesskey import FAILURE_EVERY_S, FAILURES, create
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as ClientCredentials

from appliance.errors import Denied, PluginError
from appliance.hooks import Auth
from appliance.hookspecs import Credential, NoSettings, PluginContext
from appliance.model import HttpRequest, Identity
from appliance.testing.auth import AuthContract

SECRET = "canary-secret/+0123456789abcdefghijklmno"
OWNER = Identity(
    user_id="AIDA1",
    user_name="ada",
    project_id="123456789012",
    access_level="member",
    access_key_id="AKIAGOOD",
)


class Keys:
    """One access key."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find(self, access_key_id: str) -> Credential | None:
        self.asked.append(access_key_id)
        if access_key_id != OWNER.access_key_id:
            return None
        return Credential(access_key_id=access_key_id, secret=SECRET, identity=OWNER)


def context(tmp_path: Any, keys: Keys | None) -> PluginContext:
    return PluginContext(
        node_name="n1",
        state_dir=tmp_path,
        run_dir=tmp_path,
        plugins=None,  # type: ignore[arg-type]
        credentials=keys,
    )


def signed(
    form: str = "Action=DescribeInstances&Version=2016-11-15",
    key: str = OWNER.access_key_id,
    secret: str = SECRET,
    service: str = "ec2",
) -> HttpRequest:
    """Return a request as botocore signs it."""
    request = AWSRequest(
        method="POST",
        url="http://n1:8773/services/Cloud",
        data=form.encode(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    signer = botocore.auth.SigV4Auth(ClientCredentials(key, secret), service, "local-1")
    signer.add_auth(request)
    headers = {name.lower(): value for name, value in request.headers.items()}
    return HttpRequest(
        method="POST",
        target="/services/Cloud",
        headers=(("host", "n1:8773"), *headers.items()),
        body=form.encode(),
        source="127.0.0.1",
    )


def changed(request: HttpRequest, old: str, new: str) -> HttpRequest:
    headers = tuple((name, value.replace(old, new)) for name, value in request.headers)
    return msgspec.structs.replace(request, headers=headers)


class TestAccessKey(AuthContract):
    @pytest.fixture
    def keys(self) -> Keys:
        return Keys()

    @pytest.fixture
    def driver(self, tmp_path: Any, keys: Keys) -> Auth:
        return Auth({"accesskey": create(NoSettings(), context(tmp_path, keys))})

    @pytest.fixture
    def now(self) -> float:
        return datetime.now(UTC).timestamp()

    @pytest.fixture
    def good(self) -> HttpRequest:
        return signed()

    @pytest.fixture
    def identity(self, good: HttpRequest) -> Identity:
        signature = dict(good.headers)["authorization"].rpartition("=")[2]
        digest = hashlib.sha256(signature.encode()).hexdigest()
        return msgspec.structs.replace(OWNER, request_digest=digest)

    @pytest.fixture
    def bad(self, good: HttpRequest) -> dict[str, HttpRequest]:
        return {
            "an unknown key": signed(key="AKIABAD"),
            "a wrong secret": signed(secret="wrong"),
            "another body": msgspec.structs.replace(good, body=good.body + b"&DryRun=true"),
            "another path": msgspec.structs.replace(good, target="/"),
            "another query": msgspec.structs.replace(good, target="/services/Cloud?DryRun=true"),
            "another method": msgspec.structs.replace(good, method="GET"),
            "another host": changed(good, "n1:8773", "n2:8773"),
            "the host without its port": changed(good, "n1:8773", "n1"),
            "another service": signed(service="s3"),
            "the service of one action for another": signed(service="sts"),
            "no date": msgspec.structs.replace(
                good, headers=tuple(each for each in good.headers if each[0] != "x-amz-date")
            ),
            "version 2": HttpRequest(
                method="GET",
                target="/?Action=X&AWSAccessKeyId=AKIAGOOD&SignatureVersion=2&Signature=x",
                headers=(("host", "n1:8773"),),
                body=b"",
                source="127.0.0.1",
            ),
        }

    @pytest.fixture
    def secrets(self, good: HttpRequest) -> tuple[str, ...]:
        return (SECRET, dict(good.headers)["authorization"].rpartition("=")[2])

    @pytest.mark.parametrize("minutes", [-16, 16, 5_000_000])
    def test_old_and_new_dates_are_denied(
        self, driver: Auth, good: HttpRequest, now: float, minutes: int
    ) -> None:
        with pytest.raises(Denied) as caught:
            driver.authenticate(good, now + 60 * minutes)
        assert caught.value.exact_code == "RequestExpired"

    def test_the_same_request_has_the_same_digest(
        self, driver: Auth, good: HttpRequest, now: float
    ) -> None:
        first, second = driver.authenticate(good, now), driver.authenticate(good, now)
        assert first == second
        other = driver.authenticate(signed("Action=DescribeRegions"), now)
        assert first is not None
        assert other is not None
        assert first.request_digest != other.request_digest

    def test_who_am_i_is_signed_for_another_service(self, driver: Auth, now: float) -> None:
        form = "Action=GetCallerIdentity&Version=2011-06-15"
        assert driver.authenticate(signed(form, service="sts"), now) is not None

    def test_a_key_is_looked_up_each_time(
        self, driver: Auth, keys: Keys, good: HttpRequest, now: float
    ) -> None:
        for _ in range(3):
            driver.authenticate(good, now)
        assert keys.asked == [OWNER.access_key_id] * 3

    @pytest.mark.parametrize("key", [OWNER.access_key_id, "AKIABAD"])
    def test_many_failures_lock_out_without_a_sign_of_it(
        self, driver: Auth, keys: Keys, good: HttpRequest, now: float, key: str
    ) -> None:
        """A key that exists and one that does not: the same answers, after the same work."""
        wrong = signed(key=key, secret="wrong")
        answers = {self.refusal(driver, wrong, now) for _ in range(FAILURES + 5)}
        if key == OWNER.access_key_id:
            answers.add(self.refusal(driver, good, now))
        assert len(answers) == 1
        assert len(keys.asked) == FAILURES + 5 + (key == OWNER.access_key_id)
        elsewhere = msgspec.structs.replace(good, source="127.0.0.2")
        assert driver.authenticate(elsewhere, now) is not None
        assert driver.authenticate(good, now + FAILURE_EVERY_S) is not None

    def refusal(self, driver: Auth, request: HttpRequest, now: float) -> tuple[str, str]:
        with pytest.raises(Denied) as caught:
            driver.authenticate(request, now)
        return caught.value.exact_code, str(caught.value)

    def test_requests_that_never_got_to_the_signature_lock_nobody_out(
        self, driver: Auth, good: HttpRequest, now: float
    ) -> None:
        for _ in range(2 * FAILURES):
            assert self.refusal(driver, good, now + 3600)[0] == "RequestExpired"
        assert driver.authenticate(good, now) is not None

    def test_what_was_claimed_is_told_unless_it_may_be_a_secret(
        self, driver: Auth, now: float
    ) -> None:
        for key, claimed in (("AKIA" + "A" * 16, "AKIA" + "A" * 16), (SECRET[:32], "")):
            with pytest.raises(Denied) as caught:
                driver.authenticate(signed(key=key.replace("/", "-")), now)
            assert caught.value.claimed == claimed

    def test_without_access_keys_it_is_not_made(self, tmp_path: Any) -> None:
        with pytest.raises(PluginError, match="reaches the store"):
            create(NoSettings(), context(tmp_path, None))
