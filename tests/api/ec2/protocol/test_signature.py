"""Signatures: botocore signs, we verify; and whatever else is refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.api.ec2.errors import Ec2Error
from appliance.api.ec2.protocol import signature
from appliance.api.ec2.protocol.form import split_form
from appliance.api.ec2.protocol.signature import SignedRequest, Verified, verify

KEY = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
FORM = "application/x-www-form-urlencoded; charset=utf-8"
BODY = b"Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3AName"
HOST = "node-1.example:8773"


def secret_for(access_key: str) -> str | None:
    return SECRET if access_key == KEY else None


def check(request: SignedRequest, now: datetime | None = None, service: str = "ec2") -> Verified:
    return verify(request, secret_for, now or datetime.now(UTC), service=service)


def refusal(
    request: SignedRequest, now: datetime | None = None, service: str = "ec2"
) -> tuple[str, int]:
    with pytest.raises(Ec2Error) as caught:
        check(request, now, service)
    assert SECRET not in str(caught.value)
    return caught.value.exact_code, caught.value.http_status


def sign(
    *,
    method: str = "POST",
    target: str = "/",
    body: bytes = BODY,
    headers: dict[str, str] | None = None,
    host: str = HOST,
    key: str = KEY,
    secret: str = SECRET,
    token: str | None = None,
    service: str = "ec2",
    region: str = "anynode",
) -> SignedRequest:
    """Sign with botocore's signer, as it stands on the wire afterwards."""
    request = AWSRequest(
        method=method,
        url=f"http://{host}{target}",
        data=body,
        headers={"Host": host, "Content-Type": FORM} if headers is None else headers,
    )
    SigV4Auth(Credentials(key, secret, token), service, region).add_auth(request)
    return on_the_wire(request, body)


def presign(
    target: str = "/?Action=DescribeVpcs&Version=2016-11-15",
    *,
    expires: int = 60,
    headers: dict[str, str] | None = None,
    token: str | None = None,
) -> SignedRequest:
    request = AWSRequest(method="GET", url=f"http://{HOST}{target}", headers=headers or {})
    signer = SigV4QueryAuth(Credentials(KEY, SECRET, token), "ec2", "anynode", expires=expires)
    signer.add_auth(request)
    return on_the_wire(request, b"")


def on_the_wire(request: Any, body: bytes) -> SignedRequest:
    url = urlsplit(request.url)
    headers = list(request.headers.items())
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("Host", url.netloc))
    return SignedRequest(
        method=request.method,
        path=url.path,
        query=url.query.encode(),
        headers=headers,
        body=body,
    )


def with_header(request: SignedRequest, name: str, value: str | None) -> SignedRequest:
    kept = [(each, text) for each, text in request.headers if each.lower() != name.lower()]
    return replace(request, headers=kept if value is None else [*kept, (name, value)])


def with_authorization(request: SignedRequest, old: str, new: str) -> SignedRequest:
    text = dict(request.headers)["Authorization"]
    assert old in text
    return with_header(request, "Authorization", text.replace(old, new))


def from_vector(query: str, headers: Sequence[tuple[str, str]]) -> SignedRequest:
    return SignedRequest(method="GET", path="/", query=query.encode(), headers=headers, body=b"")


def test_published_examples() -> None:
    """AWS's own worked examples, so that botocore is not the only witness."""
    now = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
    scope = f"AWS4-HMAC-SHA256 Credential={KEY}/20150830/us-east-1"
    vanilla_scope = f"{scope}/service/aws4_request, SignedHeaders=host;x-amz-date"
    vanilla_signature = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    iam_scope = f"{scope}/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date"
    iam_signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    vanilla = from_vector(
        "",
        [
            ("Host", "example.amazonaws.com"),
            ("X-Amz-Date", "20150830T123600Z"),
            ("Authorization", f"{vanilla_scope}, Signature={vanilla_signature}"),
        ],
    )
    assert check(vanilla, now, "service").access_key == KEY
    list_users = from_vector(
        "Action=ListUsers&Version=2010-05-08",
        [
            ("Host", "iam.amazonaws.com"),
            ("Content-Type", FORM),
            ("X-Amz-Date", "20150830T123600Z"),
            ("Authorization", f"{iam_scope}, Signature={iam_signature}"),
        ],
    )
    assert check(list_users, now, "iam").access_key == KEY


@pytest.mark.parametrize("host", [HOST, "node-1.example", "10.0.0.1:8773", "[fd00::1]:8773"])
@pytest.mark.parametrize("target", ["/", "/services/Cloud", "/services/Cloud/", "/a%20b/~c"])
@pytest.mark.parametrize("region", ["us-east-1", "US-WEST-2", "anynode"])
def test_what_botocore_signs_is_believed(host: str, target: str, region: str) -> None:
    request = sign(host=host, target=target, region=region, headers={"Host": host})
    assert check(request).access_key == KEY


def test_a_get_request_is_believed() -> None:
    target = "/?Version=2016-11-15&Action=DescribeVpcs&Filter.1.Name=a%20b%2Fc~"
    assert check(sign(method="GET", target=target, body=b"")).access_key == KEY


def test_the_service_is_a_parameter() -> None:
    request = sign(service="sts")
    assert check(request, service="sts").access_key == KEY
    assert refusal(request) == ("IncompleteSignature", 400)


@pytest.mark.parametrize(
    ("signed", "sent"),
    [
        ("a=x%20y", "a=x+y"),
        ("a=%2A", "a=*"),
        ("a=%2B", "a=%2b"),
        ("a=", "a"),
        ("a=&b=1", "b=1&&a="),
        ("a=b%3Dc", "a=b=c"),
        ("a=~", "a=%7E"),
        ("a=1&a=2&a=10", "a=2&a=10&a=1"),
        ("AWS=1&Action=2&aws=3&Zone=4", "aws=3&Action=2&Zone=4&AWS=1"),
        ("a.1=x&a.10=y&a-1=z", "a-1=z&a.10=y&a.1=x"),
        ("a=%C3%A9", "a=%c3%a9"),
        ("a=%00%0A", "a=%00%0A"),
        ("a=%25zz", "a=%zz"),
    ],
)
def test_spellings_of_the_same_query_are_believed(signed: str, sent: str) -> None:
    request = sign(method="GET", target=f"/?{signed}", body=b"")
    assert check(request).access_key == KEY
    assert check(replace(request, query=sent.encode())).access_key == KEY


@pytest.mark.parametrize(
    ("signed", "sent"),
    [("a=%2B", "a=+"), ("a=b", "A=b"), ("a=%2Fb", "a=%252Fb"), ("a=1", "a=1&b="), ("a=b", "ab=")],
)
def test_another_query_is_refused(signed: str, sent: str) -> None:
    request = sign(method="GET", target=f"/?{signed}", body=b"")
    assert refusal(replace(request, query=sent.encode())) == ("AuthFailure", 401)


def test_white_space_in_headers_and_missing_spaces_in_authorization_do_not_matter() -> None:
    request = sign(headers={"Host": HOST, "X-Amz-Note": "  a   b "})
    assert check(with_header(request, "x-amz-note", "a b")).access_key == KEY
    assert check(with_authorization(request, ", ", ",")).access_key == KEY


def test_a_date_header_alone_will_do_when_it_is_signed() -> None:
    request = sign(headers={"Host": HOST, "Date": "now"})
    assert "X-Amz-Date" not in dict(request.headers)
    assert check(request).access_key == KEY
    later = with_header(request, "Date", "Fri, 02 Jan 2026 03:04:05 GMT")
    assert refusal(later) == ("IncompleteSignature", 400)
    assert refusal(with_authorization(request, "date;host", "host")) == ("IncompleteSignature", 400)


def test_a_form_content_type_need_not_be_signed_but_no_other_will_do() -> None:
    request = sign(headers={"Host": HOST})
    assert check(with_header(request, "Content-Type", FORM)).access_key == KEY
    other = with_header(request, "Content-Type", "application/json")
    assert refusal(other) == ("IncompleteSignature", 400)


def test_unknown_key_and_wrong_secret_get_the_same_answer() -> None:
    answers = []
    for request in (sign(key="AKIDNOBODY"), sign(secret="wrong")):
        with pytest.raises(Ec2Error) as caught:
            check(request)
        answers.append((caught.value.exact_code, caught.value.http_status, str(caught.value)))
    assert answers[0] == answers[1]
    assert answers[0][:2] == ("AuthFailure", 401)


@pytest.mark.parametrize("nothing", ["", None])
def test_a_key_without_a_secret_opens_nothing(nothing: str | None) -> None:
    request = sign(secret="")
    with pytest.raises(Ec2Error) as caught:
        verify(request, lambda _: nothing, datetime.now(UTC))
    assert caught.value.exact_code == "AuthFailure"


def test_the_stand_in_for_an_unknown_key_opens_nothing() -> None:
    request = sign(key="AKIDNOBODY", secret=signature._UNKNOWN_KEY_SECRET)
    assert refusal(request) == ("AuthFailure", 401)


def test_no_signature_at_all() -> None:
    request = SignedRequest(method="POST", path="/", query=b"", headers=[("Host", HOST)], body=BODY)
    assert refusal(request) == ("MissingAuthenticationToken", 403)


def test_version_2_is_refused_clearly() -> None:
    query = b"Action=DescribeVpcs&AWSAccessKeyId=AK&SignatureVersion=2&Signature=x"
    request = SignedRequest(method="GET", path="/", query=query, headers=[("Host", HOST)], body=b"")
    assert refusal(request) == ("InvalidRequest", 400)
    in_body = replace(request, method="POST", query=b"", body=query)
    assert refusal(in_body) == ("InvalidRequest", 400)
    in_header = with_header(request, "Authorization", "AWS AKID:c2lnbmF0dXJl")
    assert refusal(in_header) == ("InvalidRequest", 400)


def test_security_tokens_are_refused() -> None:
    assert refusal(sign(token="tok")) == ("InvalidClientTokenId", 403)
    assert refusal(presign(token="tok")) == ("InvalidClientTokenId", 403)
    smuggled = with_header(sign(), "x-amz-security-token", "tok")
    assert refusal(smuggled) == ("InvalidClientTokenId", 403)


@pytest.mark.parametrize("minutes", [-14, 14])
def test_clocks_may_differ_by_less_than_15_minutes(minutes: int) -> None:
    assert check(sign(), datetime.now(UTC) + timedelta(minutes=minutes)).access_key == KEY


@pytest.mark.parametrize("minutes", [-16, 16, 60 * 24 * 3650])
def test_old_and_future_requests_are_refused(minutes: int) -> None:
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    assert refusal(sign(), now) == ("RequestExpired", 400)
    assert refusal(presign(expires=600), now) == ("RequestExpired", 400)


def test_the_limit_is_exact() -> None:
    request = sign()
    text = dict(request.headers)["X-Amz-Date"]
    signed_at = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    quarter = timedelta(minutes=15)
    assert check(request, signed_at + quarter).valid_until == signed_at + quarter
    assert check(request, signed_at - quarter).access_key == KEY
    for now in (signed_at + quarter, signed_at - quarter):
        further = now + (now - signed_at) / 900
        assert refusal(request, further) == ("RequestExpired", 400)


@pytest.mark.parametrize("date", ["00010101T000000Z", "99991231T235959Z"])
def test_dates_at_the_ends_of_time_expire(date: str) -> None:
    request = with_header(sign(), "X-Amz-Date", date)
    today = dict(sign().headers)["X-Amz-Date"][:8]
    scoped = with_authorization(request, f"/{today}/", f"/{date[:8]}/")
    assert refusal(scoped) == ("RequestExpired", 400)


@pytest.mark.parametrize(
    "date", ["", "yesterday", "20261301T000000Z", "20260101", "٢٠٢٦0101T000000Z"]
)
def test_unreadable_dates_are_refused(date: str) -> None:
    assert refusal(with_header(sign(), "X-Amz-Date", date)) == ("IncompleteSignature", 400)


@pytest.mark.parametrize(
    "payload", ["UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "0" * 64]
)
def test_only_the_hash_of_the_body_will_do(payload: str) -> None:
    request = sign(headers={"Host": HOST, "X-Amz-Content-SHA256": payload})
    assert refusal(request) == ("IncompleteSignature", 400)
    query = f"/?Action=DescribeVpcs&X-Amz-Content-Sha256={payload}"
    assert refusal(presign(query)) == ("IncompleteSignature", 400)


def test_the_hash_of_the_body_may_be_stated() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    request = sign(body=b"", headers={"Host": HOST, "X-Amz-Content-SHA256": empty})
    assert check(request).access_key == KEY


def test_headers_that_are_used_must_be_signed() -> None:
    assert refusal(with_header(sign(), "X-Amz-Note", "x")) == ("IncompleteSignature", 400)
    assert refusal(with_header(presign(), "X-Amz-Note", "x")) == ("IncompleteSignature", 400)
    unsigned_host = with_authorization(sign(), "content-type;host;", "content-type;")
    assert refusal(unsigned_host) == ("IncompleteSignature", 400)
    trace = with_header(sign(), "X-Amzn-Trace-Id", "Root=1")
    assert check(trace).access_key == KEY


def test_the_port_belongs_to_the_host() -> None:
    request = sign(headers={"Host": "node-1.example"})
    assert refusal(with_header(request, "Host", HOST)) == ("AuthFailure", 401)
    twice = replace(sign(), headers=[*sign().headers, ("host", "other")])
    assert refusal(twice) == ("IncompleteSignature", 400)
    assert refusal(with_header(sign(), "Host", None)) == ("IncompleteSignature", 400)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SignedHeaders=", "SignedHeader="),
        ("Signature=", "Signature=x,Signature="),
        ("content-type;host;x-amz-date", "host;content-type;x-amz-date"),
        ("content-type;host;x-amz-date", "content-type;host;host;x-amz-date"),
        ("content-type;host;x-amz-date", "Content-Type;Host;X-Amz-Date"),
        ("content-type;host;x-amz-date", "content-type;host;x-amz-date;x-gone"),
        ("content-type;host;x-amz-date", "content-type;host"),
        ("/aws4_request", "/aws5_request"),
        ("/aws4_request", ""),
        ("/anynode/", "/any/node/"),
        ("/ec2/", "/s3/"),
        ("Signature=", "Signature=0"),
        (KEY, "A" * 5000),
        (KEY, ""),
        ("Credential=", "Credential=é"),
        (" Credential", "Credential"),
    ],
)
def test_malformed_authorization_is_refused(old: str, new: str) -> None:
    code, status = refusal(with_authorization(sign(), old, new))
    assert status == 400
    assert code in ("IncompleteSignature", "InvalidRequest")


def test_a_presigned_query_is_believed() -> None:
    assert check(presign()).access_key == KEY
    assert check(presign(headers={"X-Amz-Note": "a"})).access_key == KEY
    spaced = presign("/services/Cloud?Action=DescribeVpcs&Filter.1.Name=a%20b")
    assert check(spaced).access_key == KEY


def test_a_presigned_query_ends_when_it_says_and_at_most_15_minutes_later() -> None:
    now = datetime.now(UTC)
    assert refusal(presign(expires=60), now + timedelta(seconds=62)) == ("RequestExpired", 400)
    week = presign(expires=7 * 24 * 3600)
    assert check(week, now + timedelta(minutes=14)).access_key == KEY
    assert refusal(week, now + timedelta(minutes=16)) == ("RequestExpired", 400)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"X-Amz-Expires=60", b"X-Amz-Expires=0"),
        (b"X-Amz-Expires=60", b"X-Amz-Expires=604801"),
        (b"X-Amz-Expires=60", b"X-Amz-Expires=-1"),
        (b"X-Amz-Expires=60", b"X-Amz-Expires=%D9%A3"),
        (b"X-Amz-Expires=60", b"X-Amz-Expires=60&X-Amz-Expires=61"),
        (b"X-Amz-Expires=60", b""),
        (b"X-Amz-SignedHeaders=host", b"X-Amz-SignedHeaders="),
        (b"X-Amz-Signature=", b"X-Amz-Signature=%FF"),
        (b"X-Amz-Algorithm=AWS4-HMAC-SHA256&", b""),
    ],
)
def test_malformed_presigned_queries_are_refused(old: bytes, new: bytes) -> None:
    request = presign()
    assert old in request.query
    changed = replace(request, query=request.query.replace(old, new))
    assert refusal(changed) == ("IncompleteSignature", 400)


def test_two_signatures_are_one_too_many() -> None:
    authorization = dict(sign().headers)["Authorization"]
    both = with_header(presign(), "Authorization", authorization)
    assert refusal(both) == ("IncompleteSignature", 400)


def test_a_presigned_query_does_not_cover_an_added_body() -> None:
    assert refusal(replace(presign(), body=b"Action=TerminateInstances")) == ("AuthFailure", 401)


def test_the_digest_tells_replays_from_new_requests() -> None:
    request = sign()
    first, again = check(request), check(with_header(request, "User-Agent", "other"))
    assert first.signature_digest == again.signature_digest
    assert first.signature_digest != check(sign(body=BODY + b"&DryRun=true")).signature_digest
    assert first.signature_digest not in str(request.headers)


printable = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), presigned=st.booleans())
def test_one_changed_byte_anywhere_is_refused(data: st.DataObject, presigned: bool) -> None:
    request = (
        presign("/services/Cloud?Action=DescribeVpcs&Filter.1.Name=a%20b")
        if presigned
        else sign(target="/services/Cloud?Version=2016-11-15")
    )
    signed = {"host", "x-amz-date", "content-type", "authorization"}
    if presigned:
        signed = {"host"}
    places = ["method", "path", "query"]
    places += [name for name, _ in request.headers if name.lower() in signed]
    places += [] if presigned else ["body"]
    place = data.draw(st.sampled_from(places))

    def flip(text: str) -> str:
        index = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(printable.filter(lambda character: character != text[index]))
        return text[:index] + other + text[index + 1 :]

    if place in ("method", "path"):
        changed = replace(request, **{place: flip(getattr(request, place))})
    elif place in ("query", "body"):
        changed = replace(request, **{place: flip(getattr(request, place).decode()).encode()})
    else:
        changed = with_header(request, place, flip(dict(request.headers)[place]))
    same_query = split_form(changed.query) == split_form(request.query)
    if place != "query" or not same_query:
        refusal(changed)


@settings(max_examples=300, deadline=None)
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(["Host", "Authorization", "X-Amz-Date", "Date", "Content-Type"]),
            st.one_of(
                st.text(max_size=60),
                st.just(dict(sign().headers)["Authorization"]),
                st.just(datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")),
                st.just("Mon, 99 Foo 99999 00:00:00 -9999"),
            ),
        ),
        max_size=6,
    ),
    query=st.one_of(st.binary(max_size=60), st.just(presign().query)),
    method=st.text(max_size=5),
    path=st.text(max_size=20),
)
def test_junk_is_refused_with_an_ec2_error(
    headers: list[tuple[str, str]], query: bytes, method: str, path: str
) -> None:
    request = SignedRequest(method=method, path=path, query=query, headers=headers, body=b"")
    assert refusal(request)[1] in (400, 401, 403)
