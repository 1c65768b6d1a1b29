"""EC2's service model as botocore ships it, cut down to the actions that are served."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from appliance.errors import ConfigError

API_VERSION = "2016-11-15"

ShapeType = Literal[
    "structure",
    "list",
    "string",
    "integer",
    "long",
    "float",
    "double",
    "boolean",
    "timestamp",
    "blob",
]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a structure: botocore's name, and its names on the wire."""

    name: str
    shape: str
    input_name: str
    output_name: str


class Shape(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A type of the model; ``element`` is the shape of a list's elements, empty otherwise."""

    name: str
    type: ShapeType
    members: tuple[Member, ...] = ()
    required: tuple[str, ...] = ()
    element: str = ""
    enum: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @cached_property
    def by_input_name(self) -> Mapping[str, Member]:
        """Members by the name that a request uses."""
        return {member.input_name: member for member in self.members}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """An action with the names of its shapes; ``output`` is empty when the model has none."""

    name: str
    input: str
    output: str


class ServiceModel(msgspec.Struct, frozen=True, kw_only=True):
    """The served operations with every shape they reach, and the names of all EC2 actions."""

    action_names: frozenset[str]
    operations: dict[str, Operation]
    shapes: dict[str, Shape]


class _RawReference(msgspec.Struct, rename="camel"):
    shape: str
    location_name: str = ""
    query_name: str = ""


class _RawShape(msgspec.Struct, rename="camel"):
    type: ShapeType
    members: dict[str, _RawReference] = {}
    member: _RawReference | None = None
    required: tuple[str, ...] = ()
    enum: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    location_name: str = ""

    def references(self) -> Iterable[_RawReference]:
        yield from self.members.values()
        if self.member is not None:
            yield self.member


class _RawOperation(msgspec.Struct):
    input: _RawReference | None = None
    output: _RawReference | None = None


class _RawModel(msgspec.Struct):
    """Leaves shapes undecoded: of 4,400 only some hundred are needed, and prose is most of it."""

    operations: dict[str, _RawOperation]
    shapes: dict[str, msgspec.Raw]


def load_model(actions: Collection[str], path: Path | None = None) -> ServiceModel:
    """Return the model of the named actions.

    Takes about 25 ms and 11 MB while it reads and keeps 0.8 MB for 60 actions, so there is no cache
    of it on disk.

    :param path: the service description, gzipped or not; botocore's own when not given.
    :raises ConfigError: the description is missing or unreadable, or lacks one of the actions.
    """
    source = path or _botocore_description()
    try:
        content = source.read_bytes()
        if source.suffix == ".gz":
            content = gzip.decompress(content)
        raw = msgspec.json.decode(content, type=_RawModel)
        missing = sorted(set(actions) - raw.operations.keys())
        if missing:
            raise ConfigError(f"EC2's service model {source} lacks {', '.join(missing)}.")
        operations = {name: _operation(name, raw.operations[name]) for name in sorted(actions)}
        shapes = _reached_shapes(raw, operations.values())
    except (OSError, EOFError, zlib.error, KeyError, msgspec.MsgspecError) as error:
        raise ConfigError(f"EC2's service model {source} cannot be read.") from error
    return ServiceModel(
        action_names=frozenset(raw.operations), operations=operations, shapes=shapes
    )


def _botocore_description() -> Path:
    spec = importlib.util.find_spec("botocore")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("botocore is not installed; the EC2 API takes its model from there.")
    folder = Path(spec.submodule_search_locations[0], "data", "ec2", API_VERSION)
    packed = folder / "service-2.json.gz"
    return packed if packed.exists() else folder / "service-2.json"


def _operation(name: str, raw: _RawOperation) -> Operation:
    return Operation(
        name=name,
        input=raw.input.shape if raw.input else "",
        output=raw.output.shape if raw.output else "",
    )


def _reached_shapes(raw: _RawModel, operations: Iterable[Operation]) -> dict[str, Shape]:
    decoder = msgspec.json.Decoder(_RawShape)
    reached: dict[str, _RawShape] = {}
    waiting = [name for each in operations for name in (each.input, each.output) if name]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = decoder.decode(raw.shapes[name])
            waiting.extend(reference.shape for reference in reached[name].references())
    return {name: _shape(name, shape, reached) for name, shape in reached.items()}


def _shape(name: str, raw: _RawShape, reached: Mapping[str, _RawShape]) -> Shape:
    return Shape(
        name=name,
        type=raw.type,
        members=tuple(
            _member(member_name, reference, reached[reference.shape])
            for member_name, reference in raw.members.items()
        ),
        required=raw.required,
        element=raw.member.shape if raw.member else "",
        enum=raw.enum,
        minimum=raw.min,
        maximum=raw.max,
    )


def _member(name: str, reference: _RawReference, target: _RawShape) -> Member:
    """EC2's rule: a request uses queryName, else locationName with a capital first letter."""
    location = reference.location_name or target.location_name or name
    return Member(
        name=name,
        shape=reference.shape,
        input_name=reference.query_name or location[:1].upper() + location[1:],
        output_name=location,
    )
