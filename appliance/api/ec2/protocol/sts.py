"""The one STS call that EC2 tools make: who am I."""

from __future__ import annotations

from appliance.api.ec2.protocol.text import escape_xml

API_VERSION = "2011-06-15"
_NAMESPACE = f"https://sts.amazonaws.com/doc/{API_VERSION}/"


def serialize_caller_identity(*, account: str, user_id: str, arn: str, request_id: str) -> bytes:
    """Return the reply to GetCallerIdentity."""
    return (
        f'<GetCallerIdentityResponse xmlns="{_NAMESPACE}"><GetCallerIdentityResult>'
        f"<Arn>{escape_xml(arn)}</Arn><UserId>{escape_xml(user_id)}</UserId>"
        f"<Account>{escape_xml(account)}</Account></GetCallerIdentityResult>"
        f"<ResponseMetadata><RequestId>{escape_xml(request_id)}</RequestId></ResponseMetadata>"
        "</GetCallerIdentityResponse>"
    ).encode()


def serialize_error(code: str, message: str, *, request_id: str, http_status: int) -> bytes:
    """Return STS's error document, which is not EC2's."""
    blame = "Receiver" if http_status >= 500 else "Sender"
    return (
        f'<ErrorResponse xmlns="{_NAMESPACE}"><Error><Type>{blame}</Type>'
        f"<Code>{escape_xml(code)}</Code><Message>{escape_xml(message)}</Message></Error>"
        f"<RequestId>{escape_xml(request_id)}</RequestId></ErrorResponse>"
    ).encode()
