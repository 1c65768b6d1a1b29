"""Query parameters as the nested parameters of an action, read by the input shapes of the model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from appliance.api.ec2 import errors
from appliance.api.ec2.protocol.model import API_VERSION, ServiceModel, Shape
from appliance.api.ec2.protocol.scalars import SCALAR_READERS

# Instance types are named by each cloud, and EC2 knows more attributes of an account than its own
# model says; every other enumeration is EC2's.
OPEN_ENUMS = frozenset({"InstanceType", "AccountAttributeName"})

MAX_INDEX = 9999
_MAX_DEPTH = 16
_INDEX = re.compile(r"\d+", re.ASCII)
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)

_ABSENT: Final = object()


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for; ``params`` has botocore's member names."""

    action: str
    params: dict[str, Any]
    version: str


class _Node:
    """A place in the tree of dotted names."""

    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.value: str | None = None
        self.children: dict[str, _Node] = {}


class RequestParser:
    """Reads requests to the operations of one service model; safe to share between threads."""

    def __init__(self, model: ServiceModel, open_enums: Collection[str] = OPEN_ENUMS) -> None:
        self._model = model
        self._enums = {
            name: frozenset(shape.enum)
            for name, shape in model.shapes.items()
            if shape.enum and name not in open_enums
        }

    def parse(self, form: Mapping[str, str] | Iterable[tuple[str, str]]) -> Call:
        """Return the action and its parameters.

        Unknown parameters are ignored. A list may be numbered from anywhere, with gaps; a list of
        one may leave out its number and a single value may have the number 1, as older clients
        send them. Time grows with the size of the request, whatever the names are.

        :raises Ec2Error: no or an unknown action, a value of a wrong type, a doubled or a missing
            parameter.
        """
        pairs = list(form.items() if isinstance(form, Mapping) else form)
        root = _Node()
        action = _last(pairs, "Action")
        if not action:
            raise errors.missing_action()
        operation = self._model.operations.get(action)
        if operation is None:
            raise errors.invalid_action(action)
        shape = self._model.shapes[operation.input]
        for name, value in pairs:
            self._place(root, shape, name, value)
        params = self._read_structure(shape, root, "")
        return Call(action=action, params=params, version=_version(pairs))

    def _place(self, root: _Node, shape: Shape, name: str, value: str) -> None:
        """Put a value where its name points; a name unknown to the model leaves no trace."""
        parts = name.split(".", _MAX_DEPTH)
        reached: Shape | None = shape
        for part in parts:
            reached = self._shape_below(reached, part) if reached else None
        if reached is None:
            return
        node = root
        for part in parts:
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = _Node()
            node = child
        if node.value is not None and node.value != value:
            raise _doubled(name)
        node.value = value

    def _shape_below(self, shape: Shape, part: str) -> Shape | None:
        if shape.type == "structure":
            member = shape.by_input_name.get(part)
            return self._model.shapes[member.shape] if member else None
        if shape.type == "list":
            return self._model.shapes[shape.element] if _INDEX.fullmatch(part) else None
        return shape if part == "1" else None

    def _read(self, shape: Shape, node: _Node, path: str) -> Any:
        if shape.type == "list":
            return self._read_list(shape, node, path)
        if shape.type != "structure":
            return self._read_scalar(shape, node, path)
        return self._read_structure(shape, node, f"{path}.") or _ABSENT

    def _read_structure(self, shape: Shape, node: _Node, prefix: str) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for name, child in node.children.items():
            member = shape.by_input_name[name]
            value = self._read(self._model.shapes[member.shape], child, f"{prefix}{name}")
            if value is not _ABSENT:
                members[member.name] = value
        if members or not prefix:
            _require(shape, members, prefix)
        return members

    def _read_list(self, shape: Shape, node: _Node, path: str) -> Any:
        element = self._model.shapes[shape.element]
        indexed = sorted((_index(name, path), name) for name in node.children)
        if node.value and not indexed:
            value = self._read(element, node, path)
            return _ABSENT if value is _ABSENT else [value]
        if node.value or len({index for index, _ in indexed}) < len(indexed):
            raise _doubled(path)
        values = [self._read(element, node.children[name], f"{path}.{name}") for _, name in indexed]
        return [value for value in values if value is not _ABSENT] or _ABSENT

    def _read_scalar(self, shape: Shape, node: _Node, path: str) -> Any:
        text = node.value
        first = node.children.get("1")
        if first is not None and first.value is not None:
            if text is not None and text != first.value:
                raise _doubled(path)
            text = first.value
        if text is None:
            return _ABSENT
        allowed = self._enums.get(shape.name)
        if allowed is not None and text not in allowed:
            raise errors.invalid_parameter_value(_spoken(path), text)
        return SCALAR_READERS[shape.type](text, shape, _spoken(path))


def _require(shape: Shape, members: Mapping[str, Any], prefix: str) -> None:
    if not shape.required:
        return
    for member in shape.members:
        if member.name in shape.required and member.name not in members:
            raise errors.missing_parameter(f"{prefix}{member.input_name}")


def _index(text: str, path: str) -> int:
    if len(text) > len(str(MAX_INDEX)):
        raise errors.malformed_query(f"{errors.shorten(path)} is numbered beyond {MAX_INDEX}.")
    return int(text)


def _doubled(name: str) -> errors.Ec2Error:
    return errors.malformed_query(f"{errors.shorten(name)} has more than one value.")


def _last(pairs: Iterable[tuple[str, str]], wanted: str) -> str:
    values = {value for name, value in pairs if name == wanted}
    if len(values) > 1:
        raise _doubled(wanted)
    return values.pop() if values else ""


def _version(pairs: Iterable[tuple[str, str]]) -> str:
    version = _last(pairs, "Version") or API_VERSION
    if not _VERSION.fullmatch(version):
        raise errors.no_such_version(version)
    return version


def _spoken(path: str) -> str:
    """EC2 starts the name with a small letter when it speaks of a value."""
    return path[:1].lower() + path[1:]
