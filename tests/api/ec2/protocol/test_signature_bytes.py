"""T26: what botocore signs is accepted, and each byte of what is signed counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from appliance.api.ec2.errors import Ec2Error
from appliance.api.ec2.protocol.form import split_form
from appliance.api.ec2.protocol.signature import SignedRequest
from tests.api.ec2.protocol.test_signature import FORM, HOST, check, presign, sign

UNSIGNED = {"user-agent", "accept-encoding", "content-length", "connection"}
METHODS = ("GET", "POST")
TARGETS = (
    "/",
    "/services/Cloud",
    "/services/Cloud/?Action=DescribeVpcs&Version=2016-11-15",
    "/?b=2&a=1&a=0&Filter.1.Value.1=%C3%A4%20%2B%2F%2A~",
)
BODIES = (b"", b"Action=DescribeInstances", b"Name=" + "ä+%*~ 漢".encode())
HEADERS = (
    {"Host": HOST, "Content-Type": FORM},
    {"Host": HOST, "Content-Type": FORM, "X-Amz-Meta": "  two   blanks ", "User-Agent": "x"},
    {"Host": HOST, "Content-Type": FORM, "Date": "Thu, 01 Jan 2026 00:00:00 GMT"},
)


@pytest.mark.parametrize(
    ("method", "target", "body", "headers"),
    list(itertools.product(METHODS, TARGETS, BODIES, HEADERS)),
)
def test_t26_what_botocore_signs_is_accepted(
    method: str, target: str, body: bytes, headers: dict[str, str]
) -> None:
    request = sign(method=method, target=target, body=body, headers=dict(headers))
    assert check(request).access_key == "AKIDEXAMPLE"


@pytest.mark.parametrize("expires", [1, 60, 900, 604800])
@pytest.mark.parametrize("target", ["/?Action=DescribeVpcs", "/services/Cloud?Action=X&a=%C3%A4"])
def test_t26_what_botocore_presigns_is_accepted(target: str, expires: int) -> None:
    assert check(presign(target, expires=expires)).access_key == "AKIDEXAMPLE"


def mutants(raw: bytes) -> Iterator[bytes]:
    """Yield a text with each of its bytes changed, dropped, and doubled."""
    for index, byte in enumerate(raw):
        for other in (bytes([byte ^ 0x01]), bytes([byte ^ 0x20]), b"", bytes([byte, byte])):
            yield raw[:index] + other + raw[index + 1 :]


def forgeries(request: SignedRequest) -> Iterator[tuple[str, SignedRequest]]:
    """Yield a request with each byte of what is signed changed, and where that was."""
    for part in ("method", "path"):
        for text in mutants(getattr(request, part).encode()):
            yield part, replace(request, **{part: text.decode("latin-1")})
    for part in ("query", "body"):
        for raw in mutants(getattr(request, part)):
            yield part, replace(request, **{part: raw})
    for place, (name, value) in enumerate(request.headers):
        if name.lower() in UNSIGNED:
            continue
        others = [*request.headers[:place], *request.headers[place + 1 :]]
        yield f"no {name}", replace(request, headers=others)
        yield f"{name} twice", replace(request, headers=[*request.headers, (name, value)])
        for text in mutants(name.encode()):
            changed = text.decode("latin-1")
            if changed.lower() != name.lower():
                yield f"name {name}", replace(request, headers=[*others, (changed, value)])
        for text in mutants(value.encode()):
            changed = text.decode("latin-1")
            if changed.split() != value.split():
                yield name, replace(request, headers=[*others, (name, changed)])


REQUESTS: dict[str, Callable[[], SignedRequest]] = {
    "signed form": lambda: sign(target="/services/Cloud?Version=2016-11-15&a=%20b"),
    "signed get": lambda: sign(
        method="GET",
        target="/?Action=DescribeVpcs&Filter.1.Name=vpc-id",
        body=b"",
        headers={"Host": HOST, "X-Amz-Meta": "a b"},
    ),
    "presigned": lambda: presign("/services/Cloud?Action=DescribeVpcs&Filter.1.Name=a%20b"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_t26_each_changed_byte_is_refused(kind: str) -> None:
    request = REQUESTS[kind]()
    check(request)
    pairs = sorted(split_form(request.query))
    count = 0
    for where, forged in forgeries(request):
        if where == "query" and sorted(split_form(forged.query)) == pairs:
            continue  # another spelling of the same parameters, such as %2f for %2F
        if _is_another_spelling(where, forged, request):
            continue
        count += 1
        with pytest.raises(Ec2Error) as caught:
            pytest.fail(f"A change of {where} was accepted: {forged} as {check(forged)}")
        assert caught.value.http_status in (400, 401, 403), where
    assert count > 500


def _is_another_spelling(where: str, forged: SignedRequest, request: SignedRequest) -> bool:
    """Say whether it means the same: no path is the root, blanks in Authorization carry nothing."""
    if where == "path":
        return (forged.path or "/") == (request.path or "/")
    if where.lower() != "authorization":
        return False

    def parts(one: SignedRequest) -> list[str]:
        text = {name.lower(): value for name, value in one.headers}["authorization"]
        scheme, _, fields = text.partition(" ")
        return [scheme, *(field.strip() for field in fields.split(","))]

    return parts(forged) == parts(request)


@pytest.mark.parametrize(
    "payload",
    [
        "UNSIGNED-PAYLOAD",
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_t26_only_the_hash_of_the_body_is_believed(payload: str) -> None:
    headers = {"Host": HOST, "Content-Type": FORM, "X-Amz-Content-Sha256": payload}
    with pytest.raises(Ec2Error, match="SHA-256 of the body"):
        check(sign(headers=headers))


@pytest.mark.parametrize(
    "name", ["X-Amz-Target", "X-Amz-Security-Token", "x-amz-user", "X-AMZ-Decoded-Content-Length"]
)
def test_t26_an_added_header_of_amazons_is_refused(name: str) -> None:
    request = sign()
    with pytest.raises(Ec2Error):
        check(replace(request, headers=[*request.headers, (name, "1")]))
