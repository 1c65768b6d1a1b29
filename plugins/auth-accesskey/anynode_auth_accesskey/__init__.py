"""Access keys: EC2 requests signed with AWS Signature Version 4."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime

import msgspec

from appliance.api.ec2.errors import Ec2Error, auth_failure
from appliance.api.ec2.protocol.signature import SignedRequest, verify
from appliance.errors import Denied, PluginError
from appliance.hookspecs import Credential, Credentials, NoSettings, PluginContext, hookimpl
from appliance.model import HttpRequest, Identity
from appliance.throttle import Buckets

log = logging.getLogger(__name__)

api_versions = frozenset({1})

FAILURES = 20
"""Wrong signatures in a row with one access key from one address that cost nothing."""
FAILURE_EVERY_S = 3.0
"""Seconds after which one more is free."""

_KEPT = 10_000
_NO_CREDENTIALS = "MissingAuthenticationToken"
_WRONG = "AuthFailure"
# A secret that was given in the place of the id must not be written down.
_PLAUSIBLE_ID = re.compile(r"[A-Z0-9]{16,32}", re.ASCII)
# The one action of another service that EC2's tools call: it is signed for that service.
_CALLER_IDENTITY = re.compile(rb"(?:^|&)Action=GetCallerIdentity(?:&|$)")


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the plugin.

    :raises PluginError: there are no access keys where it is used.
    """
    if context.credentials is None:
        raise PluginError("Authentication by access key needs a node that reaches the store.")
    return AccessKeys(context.credentials)


class AccessKeys:
    """Checks signatures against the access keys of the store."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._failures = Buckets(size=FAILURES, refill_s=FAILURE_EVERY_S, most=_KEPT)

    @hookimpl
    def auth_authenticate(self, request: HttpRequest, now: float) -> Identity | None:
        """Return the owner of the key that signed the request.

        Who fails too often is refused for a while whatever the signature, by the same work and
        with the same answer, so that neither tells whether there is such a key.
        """
        path, _, query = request.target.partition("?")
        signed = SignedRequest(
            method=request.method,
            path=path,
            query=query.encode("latin-1"),
            headers=request.headers,
            body=request.body,
        )
        is_sts = any(_CALLER_IDENTITY.search(form) for form in (signed.query, signed.body))
        asked: list[str] = []
        found: list[Credential] = []

        def secret_for(access_key_id: str) -> str | None:
            asked.append(access_key_id)
            credential = self._credentials.find(access_key_id)
            if credential is None:
                return None
            found.append(credential)
            return credential.secret

        try:
            verified = verify(
                signed,
                secret_for,
                datetime.fromtimestamp(now, UTC),
                service="sts" if is_sts else "ec2",
            )
            self._check_failures(asked[0], request.source, now)
        except Ec2Error as error:
            if error.exact_code == _NO_CREDENTIALS:
                return None
            if error.exact_code == _WRONG:
                self._failures.take((asked[0], request.source), now)
            raise Denied(error.message, code=error.exact_code, claimed=_claimed(asked)) from error
        return msgspec.structs.replace(found[0].identity, request_digest=verified.signature_digest)

    def _check_failures(self, access_key_id: str, source: str, now: float) -> None:
        if self._failures.is_empty((access_key_id, source), now):
            log.warning("%s is refused for its many wrong signatures", source)
            raise auth_failure()


def _claimed(asked: list[str]) -> str:
    return asked[0] if asked and _PLAUSIBLE_ID.fullmatch(asked[0]) else ""
