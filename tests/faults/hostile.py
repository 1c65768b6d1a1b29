"""Hostile requests, made from EC2's own model by a seed: the same seed makes the same requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import quote_plus

import msgspec

from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.protocol.model import API_VERSION, Shape, load_model

MODEL = load_model(ACTIONS)
SERVED = sorted(ACTIONS)
UNKNOWN = sorted(MODEL.action_names - set(ACTIONS))
FORM = "application/x-www-form-urlencoded; charset=utf-8"

TEXTS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "a",
        "*",
        "?",
        "\\",
        "[",
        "]",
        "%",
        "%s%n%x",
        "${jndi:ldap://x}",
        "..//..",
    ),
    *("a" * length for length in (63, 64, 127, 128, 255, 256, 1024, 4096, 4097, 20_000)),
    *("é" * 255, "\u202e\u200b", "\ufeff", "😀" * 64, "\ufffe", "\ue000", "ı", "ß", "\u0085\u2028"),
    *("\0", "a\0b", "\x01\x1b[2J", "\r\nX: y", "\n", "\t", "\x7f", "\x80", "\x9f"),
    *("' OR 1=1 --", '"; DROP TABLE instances; --', "') UNION SELECT 1,2 --", "`id`", "$(reboot)"),
    *("<b>&amp;", "]]>", "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>", "{{7*7}}"),
    *("../../../etc/passwd", "/dev/zero", "file:///etc/shadow", "http://169.254.169.254/", "|sh"),
    *("true", "false", "TRUE", "None", "null", "NaN", "Infinity", "undefined", "[]", "{}"),
    *("i-0123456789abcdef0", "i-12345678", "i-", "I-12345678", "i-0123456789ABCDEF0", "i-x y"),
    *("sg-12345678", "ami-12345678", "subnet-12345678", "vpc-12345678", "eni-1", "sgr-12345678"),
    *("10.0.0.0/8", "0.0.0.0/0", "::/0", "10.0.0.1/33", "10.0.0.1/-1", "1::/129", "010.0.0.1/8"),
    *("1.2.3.4/8/8", "fe80::1%eth0/64", "256.1.1.1/8", "10.0.0.0/８", "tcp", "icmpv6", "all"),
    *("default", "instance-id", "tag:", "tag:" + "k" * 128, "tag-key", "vpc-id", "aws:x"),
    *("m1.tiny", "t2.nano", "us-east-1a", "/dev/sda1", "sda1", "c1", "gp2", "stop", "terminate"),
    *("2026-*", "9999-99-99T99:99:99Z", "0001-01-01T00:00:00Z", "2026-01-01T00:00:00+99:99"),
    *("aGVsbG8=", "aGVsbG8", "====", "aGVsbG8==", "Zg==Zg==", "_-_-", "WzEuMCwiYSJd", "AA\nAA"),
    *("ssh-rsa AAAA", "ssh-ed25519 " + "A" * 68, "-----BEGIN RSA PUBLIC KEY-----", "c3NoLXJzYQ=="),
)
NUMBERS = (
    *(
        "0",
        "-0",
        "+1",
        "1",
        "2",
        "5",
        "22",
        "999",
        "1000",
        "1001",
        "65535",
        "65536",
        "01",
        " 1",
        "1 ",
    ),
    *("-1", "-2147483648", "-2147483649", "2147483647", "2147483648", "9223372036854775807"),
    *("9223372036854775808", "9" * 20, "9" * 5000, "-" + "9" * 400, "1.0", "1e3", "0x10", "0b1"),
    *("１２", "٣", "1_000", "1,000", "--1", "1-", "", "NaN", "inf", "true"),
)
FLAGS = ("true", "false", "True", "1", "0", "", "yes", "2", "tru", "true\0", "ｔrue", "null")
INDICES = (
    *(
        "0",
        "2",
        "7",
        "9999",
        "10000",
        "99999999",
        "9" * 400,
        "-1",
        "01",
        "001",
        "1.5",
        "x",
        "",
        "N",
    ),
    *("１", "²", "member.1", "1_0", " 1", "+1", "1e1", "item", "..", "1\0"),
)
RAW = (
    *(b"%", b"%z", b"%zz", b"%f", b"%ff", b"%00", b"%c0%af", b"%ed%a0%80", b"%f4%90%80%80"),
    *(b"%25", b"%2525", b"%u0041", b"+%2B+", b"a=b", b";", b"%0d%0aX:y", b"%EF%BF%BF", b"%e2%80"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\x01\x1f", b"\xf0\x9f\x98\x80", b"&&", b"=&="),
)
VERSIONS = (
    *("", "x", "2016-11-15 ", "0000-00-00", "9999-99-99", "2013-02-01", "2016-11-15\0", "2016-1-1"),
    *("２016-11-15", "2016-11-15<", "2016-11-15" * 50, "../2016"),
)
CONTENT_TYPES = (
    *("", "text/plain", "application/json", "application/xml", "multipart/form-data; boundary=x"),
    *("application/x-www-form-urlencoded; charset=utf-16", "application/x-amz-json-1.1", "x" * 900),
    *("APPLICATION/X-WWW-FORM-URLENCODED", "application/x-www-form-urlencoded;charset=;;", "a\tb"),
)
PATHS = ("/", "/services/Cloud", "/services/Cloud/")
HEADERS = (
    *(("X-Forwarded-For", "127.0.0.1"), ("X-HTTP-Method-Override", "DELETE"), ("Cookie", "a=b")),
    *(("Accept-Encoding", "gzip"), ("Range", "bytes=0-"), ("Accept", "application/json")),
    *(("X-Amz-Target", "EC2.RunInstances"), ("If-None-Match", "*"), ("Upgrade", "h2c")),
    *(("X-Amz-Security-Token", "x"), ("User-Agent", "%s" * 500), ("Connection", "upgrade")),
)

NAMING: Mapping[str, str] = {"InstanceId": "i-", "GroupId": "sg-", "ImageId": "ami-"}


class Hostile(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is to be signed. ``form`` is its query or body, as it goes over the wire."""

    number: int
    action: str
    method: str = "POST"
    path: str = "/"
    form: bytes
    content_type: str = FORM
    headers: tuple[tuple[str, str], ...] = ()


class Grammar:
    """Makes requests.

    :param known: names of parameters with values that get a request past the first checks.
    """

    def __init__(self, seed: int, known: Mapping[str, Sequence[str]]) -> None:
        self._chance = random.Random(seed)
        self._known = known
        # A private key takes a tenth of a second to make, and it is no more hostile than others.
        self._weights = [0.2 if name == "CreateKeyPair" else 1.0 for name in SERVED]

    def requests(self, count: int) -> Iterator[Hostile]:
        """Yield that many requests."""
        for number in range(count):
            yield self._request(number)

    def _often(self, percent: float) -> bool:
        return self._chance.random() * 100 < percent

    def _request(self, number: int) -> Hostile:
        action = self._action()
        pairs = [("Action", action)] if not self._often(0.5) else []
        version = self._chance.choice(VERSIONS) if self._often(3) else API_VERSION
        pairs.append(("Version", version))
        if self._often(4):
            pairs.append(("DryRun", self._chance.choice(FLAGS)))
        pairs += self._parameters(action)
        self._disturb(pairs)
        is_get = self._often(15)
        return Hostile(
            number=number,
            action=action,
            method="GET" if is_get else "POST",
            path=self._chance.choice(PATHS) if self._often(10) else "/",
            form=self._encode(pairs, 12_000 if is_get else 64_000),
            content_type=self._chance.choice(CONTENT_TYPES) if self._often(4) else FORM,
            headers=(self._chance.choice(HEADERS),) if self._often(4) else (),
        )

    def _action(self) -> str:
        if self._often(94):
            return self._chance.choices(SERVED, self._weights)[0]
        if self._often(50):
            return self._chance.choice(UNKNOWN)
        return self._chance.choice((*TEXTS, "GetCallerIdentity", "runinstances"))

    def _parameters(self, action: str) -> list[tuple[str, str]]:
        operation = MODEL.operations.get(action)
        if operation is None:
            operation = MODEL.operations[self._chance.choice(SERVED)]
        shape = MODEL.shapes[operation.input]
        return [(name.strip("."), value) for name, value in self._members(shape, 0)]

    def _members(self, shape: Shape, depth: int) -> Iterator[tuple[str, str]]:
        members = [each for each in shape.members if each.name != "DryRun"]
        if not members or depth > 4:
            return
        wanted = [each for each in members if each.name in shape.required and not self._often(4)]
        wanted += self._chance.sample(
            members, min(len(members), self._chance.choice((0, 1, 1, 2, 4)))
        )
        for member in dict.fromkeys(wanted):
            for name, value in self._values(MODEL.shapes[member.shape], member.input_name, depth):
                yield f"{member.input_name}.{name}", value

    def _values(self, shape: Shape, name: str, depth: int) -> Iterator[tuple[str, str]]:
        if shape.type == "structure":
            yield from self._members(shape, depth + 1)
        elif shape.type == "list":
            for index in self._indices():
                for rest, value in self._values(MODEL.shapes[shape.element], name, depth + 1):
                    yield f"{index}.{rest}", value
        else:
            yield "", self._scalar(shape, name)

    def _indices(self) -> list[str]:
        if self._often(85):
            return [str(number) for number in range(1, self._chance.choice((1, 1, 1, 2, 3)) + 1)]
        return self._chance.choices(INDICES, k=self._chance.choice((1, 1, 2)))

    def _scalar(self, shape: Shape, name: str) -> str:
        good = self._known.get(name, ())
        if good and self._often(70):
            return self._chance.choice(good)
        if shape.enum and self._often(60):
            return self._chance.choice(shape.enum)
        if self._often(70):
            if shape.type == "boolean":
                return self._chance.choice(FLAGS)
            if shape.type in ("integer", "long", "float", "double"):
                return self._chance.choice(NUMBERS)
        return self._text()

    def _text(self) -> str:
        if self._often(80):
            return self._chance.choice(TEXTS)
        if self._often(30):
            return self._chance.choice(NUMBERS)
        size = self._chance.choice((1, 3, 10, 40))
        codes = (self._chance.randrange(0xD7FF) for _ in range(size))
        return "".join(chr(code) for code in codes)

    def _disturb(self, pairs: list[tuple[str, str]]) -> None:
        """Double, contradict, deepen, misname and leave out."""
        ways: Sequence[Callable[[str, str], list[tuple[str, str]]]] = (
            lambda name, value: [(name, value), (name, value)],
            lambda name, value: [(name, value), (name, self._text())],
            lambda name, value: [(name, value), (f"{name}.1", self._text())],
            lambda name, value: [(f"{name}.{self._chance.choice(INDICES)}", value)],
            lambda name, value: [(name + ".1" * self._chance.choice((1, 15, 16, 17, 900)), value)],
            lambda name, value: [(name.lower(), value)],
            lambda name, value: [(f"{name}.", value)],
            lambda name, value: [(f".{name}", value)],
            lambda name, value: [(name.replace(".", "..", 1), value)],
            lambda name, value: [
                (name.replace(".1", f".{self._chance.choice(INDICES)}", 1), value)
            ],
            lambda name, value: [],
            lambda name, value: [(self._text(), value)],
            lambda name, value: [(f"Filter.{each}.Value.1", value) for each in (9999, 1, 500)],
        )
        while pairs and self._often(30):
            # Mostly behind the action and the version, without which nothing else is looked at.
            first = min(2, len(pairs) - 1) if self._often(90) else 0
            place = self._chance.randrange(first, len(pairs))
            name, value = pairs[place]
            pairs[place : place + 1] = self._chance.choice(ways)(name, value)
        if self._often(0.3):
            pairs += [
                (f"Filter.{each}.Name", "x") for each in range(self._chance.choice((200, 1100)))
            ]
        if self._often(5):
            self._chance.shuffle(pairs)

    def _encode(self, pairs: Sequence[tuple[str, str]], most: int) -> bytes:
        parts = []
        for name, value in pairs:
            encoded = quote_plus(value, errors="surrogatepass").encode()
            if self._often(2):
                place = self._chance.randrange(len(encoded) + 1)
                encoded = encoded[:place] + self._chance.choice(RAW) + encoded[place:]
            parts.append(quote_plus(name, errors="surrogatepass").encode() + b"=" + encoded)
        form = b"&".join(parts)
        if self._often(1):
            form += self._chance.choice(RAW)
        return form[:most]
