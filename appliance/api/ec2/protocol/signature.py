"""AWS Signature Version 4, checked: from the Authorization header or from a presigned query.

Nothing of a request is used that the signature does not cover. The one exception is a Content-Type
that says the body is a form: several clients do not sign it, and a body is never read as anything
else, so it decides nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, quote_from_bytes

import msgspec

from appliance.api.ec2 import errors
from appliance.api.ec2.protocol.form import split_form

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW = timedelta(minutes=15)
FORM_CONTENT_TYPE = "application/x-www-form-urlencoded"

_MAX_EXPIRES_S = 7 * 24 * 3600
_UNKNOWN_KEY_SECRET = secrets.token_hex(20)

_AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256[ ]+(\S.*)", re.ASCII)
_CREDENTIAL = re.compile(
    r"(?P<key>[!-+\--~]{1,128})/(?P<date>\d{8})/(?P<region>[\w.-]{1,64})/(?P<service>[\w-]{1,64})"
    r"/aws4_request",
    re.ASCII,
)
_SIGNATURE = re.compile(r"[0-9a-f]{64}")
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_BASIC_TIME = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_FIELDS = ("Credential", "SignedHeaders", "Signature")
_PRESIGNED = ("X-Amz-Credential", "X-Amz-SignedHeaders", "X-Amz-Signature")
_VERSION_2 = (b"AWSAccessKeyId", b"SignatureVersion", b"SignatureMethod")


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it came over the wire, before any decoding.

    :param path: up to the question mark, percent signs and all.
    :param query: what follows the question mark, without it.
    :param headers: every header line; a name may occur more than once, in any case.
    :param body: the exact bytes, after transfer coding.
    """

    method: str
    path: str
    query: bytes
    headers: Sequence[tuple[str, str]]
    body: bytes


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed; ``signature_digest`` is the same for the same request sent again.

    A caller that refuses replays remembers the digest until ``valid_until``: after that the
    request is refused for its age.
    """

    access_key: str
    signature_digest: str
    valid_until: datetime


class _Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What the request says about its own signature."""

    access_key: str
    scope: tuple[str, str, str]
    signed_headers: tuple[str, ...]
    signature: str
    timestamp: str
    lifetime: timedelta


def verify(
    request: SignedRequest,
    secret_for: Callable[[str], str | None],
    now: datetime,
    *,
    service: str = "ec2",
) -> Verified:
    """Return who signed the request.

    An unknown key costs the same work and gets the same answer as a wrong signature.

    :param secret_for: gives the secret of an access key, None when there is no such key in use.
    :param now: with its time zone.
    :raises Ec2Error: the request is not signed, not rightly signed, too old or too new.
    """
    headers = _by_name(request.headers)
    pairs = split_form(request.query)
    claim = _claim(request, headers, pairs)
    _check_scope(claim, service)
    _check_coverage(request, headers, pairs, claim)
    moment = _moment(claim.timestamp)
    _check_age(moment, claim.lifetime, now)
    secret = secret_for(claim.access_key)
    canonical = _canonical_request(request, headers, pairs, claim.signed_headers)
    expected = _signature(secret or _UNKNOWN_KEY_SECRET, claim, canonical)
    matches = hmac.compare_digest(expected, claim.signature)
    if not secret or not matches:
        raise errors.auth_failure()
    return Verified(
        access_key=claim.access_key,
        signature_digest=hashlib.sha256(claim.signature.encode()).hexdigest(),
        valid_until=moment + claim.lifetime,
    )


def _by_name(headers: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    by_name: dict[str, list[str]] = {}
    for name, value in headers:
        by_name.setdefault(name.lower(), []).append(value)
    return by_name


def _claim(
    request: SignedRequest,
    headers: Mapping[str, list[str]],
    pairs: Sequence[tuple[bytes, bytes]],
) -> _Claim:
    query = {name for name, _ in pairs}
    in_query = b"X-Amz-Algorithm" in query or b"X-Amz-Signature" in query
    if b"X-Amz-Security-Token" in query or any(headers.get("x-amz-security-token", ())):
        raise errors.invalid_security_token()
    if "authorization" in headers:
        if in_query:
            raise errors.incomplete_signature("It is signed both in a header and in the query.")
        if b"X-Amz-Date" in query:
            raise _dated_twice()
        return _claim_of_header(headers)
    if in_query:
        if "x-amz-date" in headers:
            raise _dated_twice()
        return _claim_of_query(pairs)
    if any(name in query for name in _VERSION_2) or _has_version_2_body(request.body):
        raise errors.unsupported_signature_version()
    raise errors.missing_authentication()


def _dated_twice() -> errors.Ec2Error:
    return errors.incomplete_signature("It is dated both in a header and in the query.")


def _has_version_2_body(body: bytes) -> bool:
    return any(name + b"=" in body for name in _VERSION_2)


def _claim_of_header(headers: Mapping[str, list[str]]) -> _Claim:
    text = _only(headers, "authorization")
    if not text.startswith(f"{ALGORITHM} "):
        raise errors.unsupported_signature_version()
    match = _AUTHORIZATION.fullmatch(text.strip())
    fields = [part.strip().partition("=") for part in match[1].split(",")] if match else []
    values = {name: value for name, _, value in fields}
    if len(fields) != len(_FIELDS) or set(values) != set(_FIELDS):
        raise errors.incomplete_signature(
            "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature' once each."
        )
    name = "x-amz-date" if "x-amz-date" in headers else "date"
    if name not in headers:
        raise errors.incomplete_signature(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
        )
    date = _only(headers, name)
    return _new_claim(
        credential=values["Credential"],
        signed_headers=values["SignedHeaders"],
        signature=values["Signature"],
        timestamp=date if _BASIC_TIME.fullmatch(date) else _basic_time(date),
        lifetime=MAX_SKEW,
        must_sign=name,
    )


def _claim_of_query(pairs: Sequence[tuple[bytes, bytes]]) -> _Claim:
    values: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        if raw_name.startswith(b"X-Amz-"):
            name = raw_name.decode("ascii", "replace")
            if name in values:
                raise errors.incomplete_signature(f"{errors.shorten(name)} is given twice.")
            values[name] = raw_value.decode("ascii", "replace")
    wanted = (*_PRESIGNED, "X-Amz-Algorithm", "X-Amz-Date", "X-Amz-Expires")
    missing = [name for name in wanted if name not in values]
    if missing:
        raise errors.incomplete_signature(f"The query lacks {', '.join(missing)}.")
    if values["X-Amz-Algorithm"] != ALGORITHM:
        raise errors.unsupported_signature_version()
    expires = values["X-Amz-Expires"]
    if not re.fullmatch("[0-9]{1,6}", expires) or not 1 <= int(expires) <= _MAX_EXPIRES_S:
        raise errors.incomplete_signature(
            f"X-Amz-Expires must be a number of seconds from 1 to {_MAX_EXPIRES_S}."
        )
    credential, signed_headers, signature = (values[name] for name in _PRESIGNED)
    return _new_claim(
        credential=credential,
        signed_headers=signed_headers,
        signature=signature,
        timestamp=values["X-Amz-Date"],
        lifetime=min(MAX_SKEW, timedelta(seconds=int(expires))),
    )


def _new_claim(
    *,
    credential: str,
    signed_headers: str,
    signature: str,
    timestamp: str,
    lifetime: timedelta,
    must_sign: str = "host",
) -> _Claim:
    parts = _CREDENTIAL.fullmatch(credential)
    if parts is None:
        raise errors.incomplete_signature(
            "Credential must be <access key>/<date>/<region>/<service>/aws4_request."
        )
    names = tuple(signed_headers.split(";"))
    if list(names) != sorted(set(names)) or not all(map(_HEADER_NAME.fullmatch, names)):
        raise errors.incomplete_signature(
            "SignedHeaders must be names in small letters, sorted and separated by semicolons."
        )
    for needed in ("host", must_sign):
        if needed not in names:
            raise errors.incomplete_signature(f"'{needed}' must be a 'SignedHeader'.")
    if not _SIGNATURE.fullmatch(signature):
        raise errors.incomplete_signature("Signature must be 64 hexadecimal digits.")
    return _Claim(
        access_key=parts["key"],
        scope=(parts["date"], parts["region"], parts["service"]),
        signed_headers=names,
        signature=signature,
        timestamp=timestamp,
        lifetime=lifetime,
    )


def _check_scope(claim: _Claim, service: str) -> None:
    date, _, claimed_service = claim.scope
    if claimed_service != service:
        raise errors.incomplete_signature(f"Credential should be scoped to service '{service}'.")
    if date != claim.timestamp[:8]:
        raise errors.incomplete_signature(
            "The date in the credential's scope is not that of the request."
        )


def _check_coverage(
    request: SignedRequest,
    headers: Mapping[str, list[str]],
    pairs: Sequence[tuple[bytes, bytes]],
    claim: _Claim,
) -> None:
    _only(headers, "host")
    if not (request.method.isascii() and request.path.isascii()):
        raise errors.incomplete_signature("The request line is not ASCII.")
    for name in claim.signed_headers:
        if name not in headers or not all(value.isascii() for value in headers[name]):
            raise errors.incomplete_signature(
                f"'{errors.shorten(name)}' is signed but missing, or not ASCII."
            )
    for name in headers:
        if name.startswith("x-amz-") and name not in claim.signed_headers:
            raise errors.incomplete_signature(
                f"'{errors.shorten(name)}' must be a 'SignedHeader' as it is sent."
            )
    if "content-type" not in claim.signed_headers:
        for value in headers.get("content-type", ()):
            if value.partition(";")[0].strip().lower() != FORM_CONTENT_TYPE:
                raise errors.incomplete_signature("'content-type' must be a 'SignedHeader'.")
    stated = [value.encode() for value in headers.get("x-amz-content-sha256", ())]
    stated += [value for name, value in pairs if name == b"X-Amz-Content-Sha256"]
    if stated and set(stated) != {hashlib.sha256(request.body).hexdigest().encode()}:
        raise errors.incomplete_signature("X-Amz-Content-Sha256 must be the SHA-256 of the body.")


def _check_age(moment: datetime, lifetime: timedelta, now: datetime) -> None:
    if now - moment > lifetime:
        raise errors.request_expired(f"It was signed at {moment:%Y%m%dT%H%M%SZ}; {_says(now)}")
    if moment - now > MAX_SKEW:
        raise errors.request_expired(
            f"It was signed in the future, at {moment:%Y%m%dT%H%M%SZ}; {_says(now)}"
        )


def _says(now: datetime) -> str:
    return f"the clock here says {now.astimezone(UTC):%Y%m%dT%H%M%SZ}."


def _moment(timestamp: str) -> datetime:
    if _BASIC_TIME.fullmatch(timestamp):
        try:
            return datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise _bad_date(timestamp) from error
    raise _bad_date(timestamp)


def _basic_time(date: str) -> str:
    """Return an HTTP date in the form that the string to sign uses."""
    try:
        moment = parsedate_to_datetime(date)
        return (moment.astimezone(UTC) if moment.tzinfo else moment).strftime("%Y%m%dT%H%M%SZ")
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise _bad_date(date) from error


def _bad_date(date: str) -> errors.Ec2Error:
    return errors.incomplete_signature(
        f"The date must be in ISO 8601 basic format, 20260102T030405Z, not {errors.shorten(date)}."
    )


def _canonical_request(
    request: SignedRequest,
    headers: Mapping[str, list[str]],
    pairs: Sequence[tuple[bytes, bytes]],
    signed_headers: Sequence[str],
) -> bytes:
    encoded = sorted(
        (quote_from_bytes(name, safe=""), quote_from_bytes(value, safe=""))
        for name, value in pairs
        if name != b"X-Amz-Signature"
    )
    lines = [
        request.method,
        quote(request.path or "/", safe="/"),
        "&".join(f"{name}={value}" for name, value in encoded),
        *(f"{name}:{_canonical_value(headers[name])}" for name in signed_headers),
        "",
        ";".join(signed_headers),
        hashlib.sha256(request.body).hexdigest(),
    ]
    return "\n".join(lines).encode()


def _canonical_value(values: Sequence[str]) -> str:
    return ",".join(" ".join(value.split()) for value in values)


def _signature(secret: str, claim: _Claim, canonical: bytes) -> str:
    scope = (*claim.scope, "aws4_request")
    to_sign = "\n".join(
        (ALGORITHM, claim.timestamp, "/".join(scope), hashlib.sha256(canonical).hexdigest())
    )
    key = f"AWS4{secret}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _only(headers: Mapping[str, list[str]], name: str) -> str:
    values = headers.get(name, [])
    if len(values) != 1:
        raise errors.incomplete_signature(f"There must be one '{name}' header.")
    return values[0].strip()
