"""Access keys: EC2 requests signed with AWS Signature Version 4."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

from appliance.api.ec2.errors import Ec2Error
from appliance.api.ec2.protocol.signature import SignedRequest, verify
from appliance.errors import Denied, PluginError
from appliance.hookspecs import Credential, Credentials, NoSettings, PluginContext, hookimpl
from appliance.model import HttpRequest, Identity

api_versions = frozenset({1})

_NO_CREDENTIALS = "MissingAuthenticationToken"
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

    @hookimpl
    def auth_authenticate(self, request: HttpRequest, now: float) -> Identity | None:
        """Return the owner of the key that signed the request."""
        path, _, query = request.target.partition("?")
        signed = SignedRequest(
            method=request.method,
            path=path,
            query=query.encode("latin-1"),
            headers=request.headers,
            body=request.body,
        )
        is_sts = any(_CALLER_IDENTITY.search(form) for form in (signed.query, signed.body))
        found: list[Credential] = []

        def secret_for(access_key_id: str) -> str | None:
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
        except Ec2Error as error:
            if error.exact_code == _NO_CREDENTIALS:
                return None
            raise Denied(error.message, code=error.exact_code) from error
        return msgspec.structs.replace(found[0].identity, request_digest=verified.signature_digest)
