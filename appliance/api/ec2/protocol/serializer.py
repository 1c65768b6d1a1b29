"""Results as EC2's XML, written from the output shapes of the model."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from appliance.api.ec2.protocol.model import API_VERSION, ServiceModel, Shape
from appliance.api.ec2.protocol.text import escape_xml

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
# EC2 documents <return>true</return> for these too, and older clients read their success from it.
_RETURN_BESIDE_OUTPUT = frozenset({"AssociateAddress", "CreateSecurityGroup"})
_PLANS_PER_SHAPE = 256

Writer = Callable[[Any], str]


class Constant(dict[str, Any]):
    """A structure that is the same in many places and is never changed: its XML is made once."""

    __slots__ = ("xml",)

    def __init__(self, members: Mapping[str, Any]) -> None:
        super().__init__(members)
        self.xml: dict[str, str] = {}


class ReplySerializer:
    """Writes the results of one service model; safe to share between threads."""

    def __init__(self, model: ServiceModel) -> None:
        self._writers: dict[str, Writer] = {}
        self._operations = {
            name: self._operation_writer(name, model.shapes.get(operation.output), model)
            for name, operation in model.operations.items()
        }

    def serialize(
        self,
        action: str,
        result: Mapping[str, Any],
        *,
        request_id: str,
        version: str = API_VERSION,
    ) -> bytes:
        """Return the reply to an action that succeeded.

        :param result: members by botocore's names; those that are None are left out, empty lists
            are written as empty elements. ``Return`` is true where it is not given.
        :param version: the API version that the client asked for, for the name space.
        :raises ValueError: the result has a member that EC2's model does not know.
        :raises TypeError: a member has another type than in EC2's model.
        """
        namespace = f"http://ec2.amazonaws.com/doc/{escape_xml(version)}/"
        text = (
            f'{_DECLARATION}<{action}Response xmlns="{namespace}">'
            f"<requestId>{escape_xml(request_id)}</requestId>"
            f"{self._operations[action](result)}</{action}Response>"
        )
        return text.encode()

    def _operation_writer(self, action: str, output: Shape | None, model: ServiceModel) -> Writer:
        if output is None:
            return _write_nothing
        writer = self._writer(output, model)
        if action in _RETURN_BESIDE_OUTPUT:
            return lambda result: f"<return>true</return>{writer(result)}"
        returns = [member for member in output.members if member.name == "Return"]
        if returns and model.shapes[returns[0].shape].type == "boolean":
            return lambda result: writer({"Return": True, **result})
        return writer

    def _writer(self, shape: Shape, model: ServiceModel) -> Writer:
        if shape.name not in self._writers:
            # A shape that contains itself finds this one while its own writer is being made.
            self._writers[shape.name] = lambda value: self._writers[shape.name](value)
            self._writers[shape.name] = self._new_writer(shape, model)
        return self._writers[shape.name]

    def _new_writer(self, shape: Shape, model: ServiceModel) -> Writer:
        if shape.type == "structure":
            members = {
                member.name: (member.output_name, self._writer(model.shapes[member.shape], model))
                for member in shape.members
            }
            return _structure_writer(shape.name, members)
        if shape.type == "list":
            return _list_writer(shape.name, self._writer(model.shapes[shape.element], model))
        return _SCALAR_WRITERS[shape.type]


def serialize_error(code: str, message: str, *, request_id: str) -> bytes:
    """Return EC2's error document."""
    return (
        f"{_DECLARATION}<Response><Errors><Error><Code>{escape_xml(code)}</Code>"
        f"<Message>{escape_xml(message)}</Message></Error></Errors>"
        f"<RequestID>{escape_xml(request_id)}</RequestID></Response>"
    ).encode()


def _structure_writer(name: str, members: Mapping[str, tuple[str, Writer]]) -> Writer:
    """Make a writer that keeps, for each set of members it has met, what to write in which order.

    Handlers build the same few sets again and again; ordering and checking them once is what makes
    a list of a thousand instances cheap.
    """
    order = {member: position for position, member in enumerate(members)}
    plans: dict[tuple[str, ...], list[tuple[str, str, str, Writer]]] = {}

    def plan_for(present: tuple[str, ...]) -> list[tuple[str, str, str, Writer]]:
        unknown = [member for member in present if member not in members]
        if unknown:
            raise ValueError(f"{name} of EC2's model has no member {', '.join(map(str, unknown))}.")
        plan = []
        for member in sorted(present, key=order.__getitem__):
            tag, writer = members[member]
            plan.append((member, f"<{tag}>", f"</{tag}>", writer))
        if len(plans) < _PLANS_PER_SHAPE:
            plans[present] = plan
        return plan

    def write(value: Mapping[str, Any]) -> str:
        if type(value) is Constant:
            if name not in value.xml:
                value.xml[name] = write(dict(value))
            return value.xml[name]
        present = tuple(value)
        plan = plans.get(present)
        if plan is None:
            plan = plan_for(present)
        return "".join(
            [
                f"{opening}{writer(item)}{closing}"
                for member, opening, closing, writer in plan
                if (item := value[member]) is not None
            ]
        )

    return write


def _list_writer(name: str, writer: Writer) -> Writer:
    def write(value: Sequence[Any]) -> str:
        if type(value) is not list and isinstance(value, (str, bytes, Mapping)):
            raise TypeError(f"{name} is a list in EC2's model, not {value!r:.100}.")
        return "".join([f"<item>{writer(item)}</item>" for item in value])

    return write


def _write_nothing(result: Mapping[str, Any]) -> str:
    if result:
        raise ValueError(f"EC2's model gives this action no members: {', '.join(result)}.")
    return "<return>true</return>"


def _write_boolean(value: object) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    raise TypeError(f"A boolean is needed, not {value!r:.100}.")


def _write_integer(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    raise TypeError(f"An integer is needed, not {value!r:.100}.")


def _write_number(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return repr(value)
    raise TypeError(f"A finite number is needed, not {value!r:.100}.")


def _write_timestamp(value: object) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return _timestamp(value)
    raise TypeError(f"A time with its zone is needed, not {value!r:.100}.")


# What was made together bears the same time, often a thousand times in one reply.
@lru_cache(maxsize=1024)
def _timestamp(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def _write_blob(value: object) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    raise TypeError(f"Bytes are needed, not {value!r:.100}.")


_SCALAR_WRITERS: Mapping[str, Writer] = {
    "string": escape_xml,
    "boolean": _write_boolean,
    "integer": _write_integer,
    "long": _write_integer,
    "float": _write_number,
    "double": _write_number,
    "timestamp": _write_timestamp,
    "blob": _write_blob,
}
