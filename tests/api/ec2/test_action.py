"""What actions declare is what they do, and EC2's model knows every name of it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader

from appliance.api import ec2
from appliance.api.ec2.action import Action, Page, Refusal, action
from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.call import Call
from appliance.api.ec2.errors import Ec2Error
from appliance.store.filters import ANY_TAG

MODEL: dict[str, Any] = Loader().load_service_model("ec2", "service-2", "2016-11-15")
OF_EVERY_ACTION = {"DryRun", "Filters", "Filter", "MaxResults", "NextToken"}
ACTIONS_PACKAGE = "appliance.api.ec2.actions"


def members_of(shape: str) -> dict[str, Any]:
    found: dict[str, Any] = MODEL["shapes"][shape].get("members", {})
    return found


def input_of(name: str) -> dict[str, Any]:
    return members_of(MODEL["operations"][name]["input"]["shape"])


def leads_somewhere(members: dict[str, Any], path: list[str]) -> bool:
    """Say whether names lead to a member, through lists."""
    if path[0] not in members:
        return False
    shape = members[path[0]]["shape"]
    while MODEL["shapes"][shape]["type"] == "list":
        shape = MODEL["shapes"][shape]["member"]["shape"]
    return len(path) == 1 or leads_somewhere(members_of(shape), path[1:])


def source_of(module: str) -> str:
    """Return the text of a module of actions and of those that it takes parts from."""
    text = inspect.getsource(importlib.import_module(module))
    lines = [line.split()[1] for line in text.splitlines() if line.startswith("from ")]
    others = {name for name in lines if name.startswith(f"{ACTIONS_PACKAGE}.")}
    return text + "".join(source_of(name) for name in sorted(others))


SHARED = "".join(path.read_text() for path in sorted(Path(str(ec2.__path__[0])).glob("*.py")))


@pytest.mark.parametrize("name", sorted(ACTIONS))
class TestDeclarations:
    def test_what_is_refused_or_ignored_is_in_the_model(self, name: str) -> None:
        served = ACTIONS[name]
        for refusal in served.refuses:
            assert leads_somewhere(input_of(name), refusal.parameter.split(".")), refusal.parameter
        assert set(served.ignores) <= set(input_of(name))
        refused = {refusal.parameter.partition(".")[0] for refusal in served.refuses}
        assert not refused & set(served.ignores)

    def test_each_parameter_is_used_refused_or_ignored(self, name: str) -> None:
        served = ACTIONS[name]
        known = {refusal.parameter.partition(".")[0] for refusal in served.refuses}
        known |= OF_EVERY_ACTION | set(served.ignores)
        source = SHARED + source_of(served.function.__module__)
        forgotten = [
            member
            for member in input_of(name)
            if member not in known and f'"{member}"' not in source
        ]
        assert not forgotten

    def test_filters_and_pages_are_there_where_ec2_has_them(self, name: str) -> None:
        served, members = ACTIONS[name], input_of(name)
        assert bool(served.filters) == bool({"Filters", "Filter"} & set(members))
        assert (served.page is not None) == ("MaxResults" in members)
        if served.page is not None:
            bounds = MODEL["shapes"][members["MaxResults"]["shape"]]
            assert served.page.smallest == bounds.get("min", served.page.smallest)
            assert served.page.largest == bounds.get("max", served.page.largest)
            assert set(served.page.excludes) <= set(members)


def carried_out(**declared: Any) -> tuple[Action, list[dict[str, Any]]]:
    """Return an action, and the parameters that its function gets when it is called."""
    seen: list[dict[str, Any]] = []

    @action(**declared)
    def function(call: Call, params: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(params))
        return {}

    return function, seen


CALL: Any = None


class TestRefusal:
    @pytest.mark.parametrize(
        ("params", "is_refused"),
        [
            ({}, False),
            ({"A": {}}, False),
            ({"A": {"B": ""}}, False),
            ({"A": {"B": "x"}}, True),
            ({"A": [{"B": ""}, {"C": 1}, {"B": "x"}]}, True),
            ({"A": [{"C": "x"}]}, False),
        ],
    )
    def test_it_finds_what_is_given(self, params: dict[str, Any], is_refused: bool) -> None:
        served, seen = carried_out(refuses=(Refusal(parameter="A.B", text="No B."),))
        if is_refused:
            with pytest.raises(Ec2Error, match="No B") as caught:
                served(CALL, params)
            assert caught.value.exact_code == "UnsupportedOperation"
        else:
            served(CALL, params)
        assert bool(seen) is not is_refused

    @pytest.mark.parametrize(("value", "is_refused"), [(True, False), (False, True)])
    def test_what_is_so_anyway_may_be_asked_for(self, value: bool, is_refused: bool) -> None:
        refusal = Refusal(parameter="A", text="No.", unless=(True,), code="InvalidParameter")
        served, seen = carried_out(refuses=(refusal,))
        if is_refused:
            with pytest.raises(Ec2Error) as caught:
                served(CALL, {"A": value})
            assert caught.value.exact_code == "InvalidParameter"
        else:
            served(CALL, {"A": value})
        assert bool(seen) is not is_refused


class TestPage:
    @pytest.mark.parametrize(
        ("wanted", "settled"), [(None, None), (5, 5), (1000, 1000), (1001, 1000)]
    )
    def test_sizes(self, wanted: int | None, settled: int | None) -> None:
        served, seen = carried_out(page=Page())
        served(CALL, {} if wanted is None else {"MaxResults": wanted})
        assert seen[0].get("MaxResults") == settled

    def test_a_size_that_is_too_small_is_refused_in_ec2s_words(self) -> None:
        served, seen = carried_out(page=Page())
        with pytest.raises(Ec2Error, match=r"Value \( 4 \) for parameter maxResults is invalid"):
            served(CALL, {"MaxResults": 4})
        assert not seen

    def test_named_things_have_no_pages(self) -> None:
        served, seen = carried_out(page=Page(size=100, excludes={"Ids": "idSet"}))
        with pytest.raises(Ec2Error, match="The parameter idSet cannot be used") as caught:
            served(CALL, {"MaxResults": 5, "Ids": ["x"]})
        assert caught.value.exact_code == "InvalidParameterCombination"
        served(CALL, {"Ids": ["x"]})
        served(CALL, {})
        assert [params.get("MaxResults") for params in seen] == [None, 100]


class TestFilters:
    @pytest.mark.parametrize("name", ["other", "tag:", "tag", "TAG:a"])
    def test_an_unknown_one_is_refused(self, name: str) -> None:
        served, seen = carried_out(filters=("known", ANY_TAG))
        with pytest.raises(Ec2Error, match=f"The filter '{name}' is invalid"):
            served(CALL, {"Filters": [{"Name": name, "Values": ["x"]}]})
        assert not seen

    @pytest.mark.parametrize("name", ["known", "tag:a", "tag:tag:"])
    def test_a_known_one_is_not(self, name: str) -> None:
        served, seen = carried_out(filters=("known", ANY_TAG))
        served(CALL, {"Filters": [{"Name": name, "Values": ["x"]}]})
        assert seen

    def test_there_may_be_two_hundred_values(self) -> None:
        served, seen = carried_out(filters=("known",))
        served(CALL, {"Filters": [{"Name": "known", "Values": ["x"] * 200}]})
        with pytest.raises(Ec2Error) as caught:
            served(CALL, {"Filters": [{"Name": "known", "Values": ["x"] * 201}]})
        assert caught.value.exact_code == "FilterLimitExceeded"
        assert len(seen) == 1


def test_what_is_ignored_is_still_part_of_the_request() -> None:
    served, seen = carried_out(ignores=("A",))
    served(CALL, {"A": 1, "B": 2})
    assert seen == [{"A": 1, "B": 2}]
