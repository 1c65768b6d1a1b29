"""Contract of authentication plugins: subclass AuthContract and override its fixtures."""

from __future__ import annotations

import pytest

from appliance.errors import Denied
from appliance.hooks import Auth
from appliance.model import HttpRequest, Identity

NOW = 1_600_000_000.0


class AuthContract:
    """What the front doors rely on, whatever the kind of credentials.

    Override ``driver``, ``good`` (a request with good credentials of the plugin's kind),
    ``identity`` (whose they are), ``bad`` (requests with bad credentials of its kind: at least an
    unknown user and a changed request) and ``secrets`` (texts that no error may show).
    """

    @pytest.fixture
    def driver(self) -> Auth:
        """Return the plugin as a front door calls it."""
        raise NotImplementedError

    @pytest.fixture
    def now(self) -> float:
        """Return the time at which the requests are checked, in seconds since the epoch."""
        return NOW

    @pytest.fixture
    def good(self) -> HttpRequest:
        """Return a request with good credentials."""
        raise NotImplementedError

    @pytest.fixture
    def identity(self) -> Identity:
        """Return who sent the good request."""
        raise NotImplementedError

    @pytest.fixture
    def bad(self) -> dict[str, HttpRequest]:
        """Return requests with bad credentials, by what is bad about them."""
        raise NotImplementedError

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        """Return texts that no error may show."""
        raise NotImplementedError

    def test_knows_who_sent_a_good_request(
        self, driver: Auth, good: HttpRequest, identity: Identity, now: float
    ) -> None:
        assert driver.authenticate(good, now) == identity

    def test_leaves_a_request_without_credentials_to_others(self, driver: Auth, now: float) -> None:
        for method in ("GET", "POST"):
            plain = HttpRequest(
                method=method,
                target="/?Action=DescribeInstances&Version=2016-11-15",
                headers=(("host", "127.0.0.1:8773"), ("user-agent", "test")),
                body=b"",
                source="127.0.0.1",
            )
            assert driver.authenticate(plain, now) is None

    def test_denies_bad_credentials_of_its_kind(
        self, driver: Auth, bad: dict[str, HttpRequest], now: float
    ) -> None:
        assert len(bad) >= 2
        for what, request in bad.items():
            with pytest.raises(Denied):
                pytest.fail(f"{what} was let in: {driver.authenticate(request, now)}")

    def test_a_denial_shows_no_secret(
        self,
        driver: Auth,
        bad: dict[str, HttpRequest],
        secrets: tuple[str, ...],
        now: float,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(1)
        assert secrets
        for request in bad.values():
            with pytest.raises(Denied) as caught:
                driver.authenticate(request, now)
            for secret in secrets:
                assert secret not in str(caught.value) + caplog.text
