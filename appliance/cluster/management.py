"""A client of RabbitMQ's management API: what it takes to let nodes in and to throw them out."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct

from appliance.config import without_password
from appliance.errors import ConfigError, Denied, Unavailable

_TIMEOUT_S = 10.0
_LONGEST_ANSWER = 64 << 20

TRIES = 4
"""How often a machine of the broker is asked that answers with an error of its own."""

STUMBLED_S = 0.5
"""Seconds between these."""


class Access(Struct, frozen=True, kw_only=True):
    """How a broker is administered.

    ``urls`` are those of its management API, login included, one per machine of the broker;
    ``vhost`` is the cluster's virtual host; ``authority`` is the PEM certificate that vouches for
    the broker, empty: those that this machine trusts.
    """

    urls: tuple[str, ...]
    vhost: str
    authority: str = ""


class Management:
    """The management API of a broker.

    Every method raises :class:`Unavailable` when no machine of the broker answers (whether it took
    effect is unknown then, and it is safe to repeat), and :class:`Denied` when the login may not.

    :raises ConfigError: an URL is none, or would carry the password in the clear.
    """

    def __init__(self, access: Access) -> None:
        self.vhost = access.vhost
        self._doors = tuple(_Door(url, access.authority) for url in access.urls)
        if not self._doors:
            raise ConfigError("No URL of the broker's management API is known.")

    def import_definitions(self, definitions: Mapping[str, Any]) -> None:
        """Make users, permissions and queues at once; what is there with that name is changed."""
        self._ask("POST", "/api/definitions", definitions)

    def declare(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """Make a queue or an exchange unless it is there.

        :raises Denied: it is there and is another.
        """
        self._ask("PUT", f"/api/{kind}/{self._vhost}/{_part(name)}", body)

    def remove_queue(self, name: str) -> None:
        """Remove a queue with what it holds; none there is no error."""
        self._ask("DELETE", f"/api/queues/{self._vhost}/{_part(name)}")

    def remove_user(self, name: str) -> None:
        """Remove a login, which ends its connections; none there is no error."""
        self._ask("DELETE", f"/api/users/{_part(name)}")

    def close_connections(self, user: str, reason: str) -> None:
        """End all connections of a login; none there is no error."""
        self._ask(
            "DELETE", f"/api/connections/username/{_part(user)}", headers={"X-Reason": reason}
        )

    def version(self) -> str:
        """Return the release of the broker."""
        return str(self._ask("GET", "/api/overview").get("rabbitmq_version", ""))

    def own_tags(self) -> list[str]:
        """Return what the login that administers may do."""
        tags = self._ask("GET", "/api/whoami").get("tags", "")
        return tags.split(",") if isinstance(tags, str) else [str(one) for one in tags]

    def queues(self) -> list[str]:
        """Return the names of the durable queues of the virtual host; none where that is not."""
        found = self._ask("GET", f"/api/definitions/{self._vhost}", accept=(400, 404))
        return [one["name"] for one in (found or {}).get("queues", ())]

    def users(self) -> list[str]:
        """Return the names of all logins."""
        return [one["name"] for one in self._ask("GET", "/api/users?columns=name")]

    def alarms(self) -> tuple[str, ...]:
        """Return what keeps the broker from taking messages; nothing: it takes them."""
        answer = self._ask("GET", "/api/health/checks/alarms", accept=(503,))
        if not isinstance(answer, dict) or answer.get("status") == "ok":
            return ()
        found = answer.get("alarms") or [{"resource": answer.get("reason", "unknown")}]
        return tuple(
            " ".join(str(one[key]) for key in ("resource", "node") if key in one) for one in found
        )

    @property
    def _vhost(self) -> str:
        return _part(self.vhost)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        accept: Sequence[int] = (),
    ) -> Any:
        """Ask the first machine of the broker that answers."""
        problem: Unavailable | None = None
        for door in self._doors:
            for left in reversed(range(TRIES)):
                try:
                    return door.ask(method, path, body, headers or {}, accept)
                except _StumbledError as error:
                    # It does so when what it is about to list or to end ends meanwhile.
                    problem = error
                    if left:
                        time.sleep(STUMBLED_S)
                except Unavailable as error:
                    problem = error
                    break
        assert problem is not None
        raise problem


class _StumbledError(Unavailable):
    """A machine of the broker answered that it failed."""


def _part(name: str) -> str:
    return quote(name, safe="")


class _Door:
    """The management API on one machine."""

    def __init__(self, url: str, authority: str) -> None:
        self._shown = without_password(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{self._shown} is no URL: {error}.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.username:
            raise ConfigError(
                f"{self._shown} is no URL of a management API.",
                hint="It looks like https://admin:password@broker.example:15671.",
            )
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ConfigError(
                f"{self._shown} would send the password in the clear.", hint="Use https."
            )
        self._shown = f"{parts.scheme}://{parts.hostname}:{port or ''}".rstrip(":")
        self._host = parts.hostname
        self._base = parts.path.rstrip("/")
        self._port = port or (15671 if parts.scheme == "https" else 15672)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        self._login = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._tls = _context(authority) if parts.scheme == "https" else None

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        accept: Sequence[int],
    ) -> Any:
        link = self._connect()
        try:
            given = None if body is None else json.dumps(body).encode()
            link.request(
                method,
                self._base + path,
                given,
                {"Authorization": self._login, "Content-Type": "application/json", **headers},
            )
            reply = link.getresponse()
            text = reply.read(_LONGEST_ANSWER)
            return self._answer(reply.status, text, method, accept)
        except (OSError, http.client.HTTPException) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unavailable(
                f"The broker's management API at {self._shown} does not answer: {said}.",
                hint="Look whether the broker runs, and whether this node reaches it.",
            ) from error
        finally:
            link.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT_S, context=self._tls
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)

    def _answer(self, status: int, text: bytes, method: str, accept: Sequence[int]) -> Any:
        if status < 300 or status in accept or (method == "DELETE" and status == 404):
            try:
                return json.loads(text) if text else None
            except ValueError:
                return None
        if status in (401, 403):
            raise Denied(
                f"The broker at {self._shown} does not let this login administer it.",
                hint="It needs the tag `administrator`, and its password may have changed.",
            )
        said = f"The broker at {self._shown} refused ({status}): {_reason(text)}."
        raise _StumbledError(said) if status >= 500 else Denied(said)


def _reason(text: bytes) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return "without a reason"
    return str(answer.get("reason") or answer.get("error") or "without a reason")


def _context(authority: str) -> ssl.SSLContext:
    """Return what checks the broker: against one authority where it is known, and no other."""
    try:
        context = ssl.create_default_context(cadata=authority or None)
    except ssl.SSLError as error:
        raise ConfigError(f"The authority of the broker is no certificate: {error}.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
