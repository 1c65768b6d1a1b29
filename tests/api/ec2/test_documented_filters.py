"""Every filter that EC2 documents for an action is known: botocore's model has the names."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from botocore.loaders import Loader

from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.front_door import FrontDoor
from appliance.model import HttpRequest, Identity
from appliance.store.filters import ANY_TAG, is_known
from tests.api.front import Front

MODEL: dict[str, Any] = Loader().load_service_model("ec2", "service-2", "2016-11-15")
_ALSO = "You can also use "


class _Names(HTMLParser):
    """Collects the first piece of code of each item of the outermost list, and other spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._depth = 0
        self._is_first = False
        self._is_code = False
        self._said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._depth += tag == "ul"
        if tag == "li" and self._depth == 1:
            self._is_first, self._said = True, ""
        self._is_code = tag == "code"

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "ul"
        self._is_code = False

    def handle_data(self, data: str) -> None:
        is_other = _ALSO in self._said and "filter name" not in self._said
        if self._is_code and self._depth == 1 and (self._is_first or is_other):
            self.names.append(data)
            self._is_first = False
        elif self._depth == 1:
            self._said += data


def documented(action: str) -> list[str]:
    """Return the names of an action's filters, that of any tag as the registry has it."""
    shape = MODEL["shapes"][MODEL["operations"][action]["input"]["shape"]]
    members = shape["members"]
    filters = members.get("Filters") or members.get("Filter")
    if filters is None:
        return []
    reader = _Names()
    reader.feed(filters["documentation"])
    return [ANY_TAG if name in ("tag", "tag:") else name for name in reader.names]


DOCUMENTED = {action: documented(action) for action in ACTIONS}


def test_the_documentation_is_understood() -> None:
    assert len(DOCUMENTED["DescribeInstances"]) > 100
    assert len(DOCUMENTED["DescribeSubnets"]) == 25 + 5  # five have other spellings
    assert {"availabilityZone", "cidr", "cidrBlock", "defaultForAz"} <= {
        *DOCUMENTED["DescribeSubnets"]
    }
    assert DOCUMENTED["DescribeRegions"] == ["endpoint", "opt-in-status", "region-name"]
    assert "low" not in DOCUMENTED["DescribeImages"]


@pytest.mark.parametrize("action", sorted(name for name, names in DOCUMENTED.items() if names))
def test_every_documented_filter_is_known(action: str) -> None:
    served = ACTIONS[action].filters
    unknown = [
        name for name in DOCUMENTED[action] if name not in served and not is_known(name, served)
    ]
    assert not unknown


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    front = Front(tmp_path_factory.mktemp("filters"))
    front.make_running(front.run(2))

    class Demo:
        def authenticate(self, request: HttpRequest, now: float) -> Identity | None:
            return Identity(
                user_id="u",
                user_name="u",
                project_id=front.keys.project_id,
                access_level="reader",
            )

    yield FrontDoor(front.parts, Demo())  # type: ignore[arg-type]
    front.close()


VALUES = ["true", "0", "a?b*c", "\\*", "2026-01-01T*", "'"]


@pytest.mark.parametrize(
    ("action", "name"), [(a, n) for a in ACTIONS for n in sorted(ACTIONS[a].filters)]
)
def test_every_filter_is_answered(door: FrontDoor, action: str, name: str) -> None:
    name = name.replace("<key>", "it's")
    values = "".join(f"&Filter.1.Value.{n}={_quoted(v)}" for n, v in enumerate(VALUES, 1))
    form = f"Action={action}&Filter.1.Name={_quoted(name)}{values}"
    request = HttpRequest(
        method="POST", target="/", headers=(("host", "n1"),), body=form.encode(), source="::1"
    )
    assert door.answer(request).status == 200


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())
