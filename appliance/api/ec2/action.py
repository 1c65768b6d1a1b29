"""What an action takes: its filters, its pages, and the parameters that it refuses or ignores.

The front door goes by it, and the reference page is written from it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.api.ec2 import errors
from appliance.api.ec2.call import Call
from appliance.api.ec2.paging import filters_of
from appliance.store.filters import is_known

Function = Callable[[Call, dict[str, Any]], dict[str, Any]]
"""Takes a call and its parameters, and returns the result, both by botocore's member names."""

SIZE, TOKEN = "MaxResults", "NextToken"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A parameter that is answered with an error, for it would change what the caller gets.

    :param parameter: its place by botocore's member names, such as ``Placement.Tenancy``; lists are
        looked through.
    :param unless: values that ask for what is so anyway; without any, only empty ones and false.
    """

    parameter: str
    text: str
    unless: Collection[object] = ()
    code: str = "UnsupportedOperation"

    def check(self, params: Mapping[str, Any]) -> None:
        """Refuse the parameter where it is given.

        :raises Ec2Error: it is.
        """
        for value in _values_at(params, self.parameter.split(".")):
            is_harmless = value in self.unless if self.unless else not value
            if not is_harmless:
                raise errors.Ec2Error(self.code, self.text)


@dataclass(frozen=True, kw_only=True)
class Page:
    """How many rows a caller may ask for at once.

    :param size: rows of a page when the caller does not say; ``None`` for all.
    :param excludes: members that cannot be given with a page's size, each with EC2's word for it.
    """

    smallest: int = 5
    largest: int = 1000
    size: int | None = None
    excludes: Mapping[str, str] = field(default_factory=dict)

    def settle(self, params: dict[str, Any]) -> None:
        """Check the size asked for, and put in the one that holds.

        :raises Ec2Error: it is too small, or given together with what excludes it.
        """
        wanted: int | None = params.get(SIZE)
        if wanted is None:
            if self.size is not None and not any(params.get(each) for each in self.excludes):
                params[SIZE] = self.size
            return
        for member, word in self.excludes.items():
            if params.get(member):
                raise errors.invalid_parameter_combination(
                    f"The parameter {word} cannot be used with the parameter maxResults"
                )
        if wanted < self.smallest:
            raise errors.invalid_parameter_value(
                "maxResults", f" {wanted} ", f"Expecting a value greater than {self.smallest}."
            )
        params[SIZE] = min(wanted, self.largest)


@dataclass(frozen=True, kw_only=True)
class Action:
    """An action as it is served; calling it checks the parameters and carries it out."""

    function: Function
    filters: Collection[str]
    page: Page | None
    refuses: Sequence[Refusal]
    ignores: Sequence[str]

    def __call__(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """Carry the action out.

        :raises Ec2Error: a parameter is refused, a filter unknown or a page of no good size, or
            whatever the function says.
        """
        self.check(params)
        return self.function(call, params)

    def check(self, params: dict[str, Any]) -> None:
        """Refuse what the action does not take, and settle the size of a page."""
        for refusal in self.refuses:
            refusal.check(params)
        for name, _ in filters_of(params):
            if not is_known(name, self.filters):
                raise errors.invalid_filter(name)
        if self.page is not None:
            self.page.settle(params)


def action(
    *,
    filters: Collection[str] = (),
    page: Page | None = None,
    refuses: Sequence[Refusal] = (),
    ignores: Sequence[str] = (),
) -> Callable[[Function], Action]:
    """Make a function an action.

    :param filters: names of filters, best the mapping that the store goes by.
    :param page: how a list is paged; without it the action takes no ``MaxResults``.
    :param refuses: parameters that are answered with an error.
    :param ignores: parameters that are taken without effect: they only tune EC2. The function gets
        them: a request that repeats another must have them, too.
    """

    def make(function: Function) -> Action:
        return Action(
            function=function, filters=filters, page=page, refuses=refuses, ignores=ignores
        )

    return make


def _values_at(params: Any, path: Sequence[str]) -> Iterator[Any]:
    if isinstance(params, list) and path:
        for each in params:
            yield from _values_at(each, path)
    elif not path:
        yield params
    elif path[0] in params:
        yield from _values_at(params[path[0]], path[1:])
