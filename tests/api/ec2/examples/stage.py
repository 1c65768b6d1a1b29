"""Where the examples of actions are played: every reply is read back as clients read it.

A call goes through the front door as botocore writes it. Its reply is parsed by botocore and must
say what the action meant: no member lost, no tag that the model does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import botocore.parsers
import botocore.serialize
import botocore.session

from appliance.api.ec2.front_door import FrontDoor, Reply
from appliance.model import HttpRequest, Identity
from tests.api.ec2.protocol.test_round_trip import assert_names
from tests.api.front import Front

_model = botocore.session.get_session().get_service_model("ec2")
_serializer = botocore.serialize.create_serializer("ec2", include_validation=False)
_parser = botocore.parsers.create_parser("ec2")

Play = Callable[["Stage"], None]
EXAMPLES: dict[str, list[Play]] = {}
"""By action, the functions that call it; each action of the table needs at least one."""


def example(action: str) -> Callable[[Play], Play]:
    """Register a function that calls an action so that its reply has something to say."""

    def register(play: Play) -> Play:
        EXAMPLES.setdefault(action, []).append(play)
        return play

    return register


class Refused(Exception):
    """An action was answered with an error."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.code = code
        self.message = message
        self.status = status


class _EverybodyIsIn:
    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def authenticate(self, request: HttpRequest, now: float) -> Identity | None:
        return self.identity


class Stage:
    """The API of a node, called past HTTP and signatures by an admin of a project.

    :param project_id: not given, that of ``demo``.
    """

    def __init__(self, front: Front, project_id: str = "") -> None:
        self.front = front
        self.project_id = project_id or front.keys.project_id
        self.meant: Counter[str] = Counter()
        who = Identity(user_id="u", user_name="u", project_id=self.project_id, access_level="admin")
        self._door = FrontDoor(front.parts, _EverybodyIsIn(who))  # type: ignore[arg-type]
        self._results: list[tuple[str, Mapping[str, Any]]] = []
        serialize = self._door._serializer.serialize

        def remember(action: str, result: Mapping[str, Any], **options: Any) -> bytes:
            self._results.append((action, result))
            return serialize(action, result, **options)

        self._door._serializer.serialize = remember  # type: ignore[method-assign]

    def ask(self, action: str, **params: Any) -> dict[str, Any]:
        """Call an action with botocore's names; return the reply as botocore parses it.

        :raises Refused: it was answered with an error.
        :raises AssertionError: the reply does not say what was meant.
        """
        operation = _model.operation_model(action)
        body = _serializer.serialize_to_request(params, operation)["body"]
        reply = self._post(urlencode(body))
        document = {"status_code": reply.status, "headers": {}, "body": reply.body}
        parsed: dict[str, Any] = _parser.parse(document, operation.output_shape)
        metadata = parsed.pop("ResponseMetadata")
        assert metadata["RequestId"] == reply.request_id
        if "Error" in parsed:
            error = parsed["Error"]
            raise Refused(error["Code"], error["Message"], reply.status)
        self._compare(action, parsed, reply, operation)
        return parsed

    def refusal(self, action: str, **params: Any) -> str:
        """Return the code with which a call is refused.

        :raises AssertionError: it is not.
        """
        try:
            reply = self.ask(action, **params)
        except Refused as refused:
            return refused.code
        raise AssertionError(f"{action} was not refused: {reply}")

    @staticmethod
    def has_output(action: str) -> bool:
        """Say whether EC2's model gives an action's reply any members."""
        return bool(_model.operation_model(action).output_shape)

    def _post(self, form: str) -> Reply:
        request = HttpRequest(
            method="POST",
            target="/",
            headers=(("host", "n1:8773"),),
            body=form.encode(),
            source="127.0.0.1",
        )
        return self._door.answer(request)

    def _compare(self, action: str, parsed: Any, reply: Reply, operation: Any) -> None:
        named, result = self._results.pop()
        assert named == action
        output = operation.output_shape
        meant = said(result)
        if output and "Return" in output.members:
            meant.setdefault("Return", True)
        assert parsed == meant
        assert_names(action, ElementTree.fromstring(reply.body), output)
        self.meant[action] += count_values(meant)


def said(value: Any) -> Any:
    """Return a result as it can be told: without what is None, sequences as lists."""
    if isinstance(value, Mapping):
        return {name: said(item) for name, item in value.items() if item is not None}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [said(item) for item in value]
    return value


def count_values(value: Any) -> int:
    """Return how many single values a result has: none where it is only empty lists."""
    if isinstance(value, Mapping):
        return sum(count_values(item) for item in value.values())
    if isinstance(value, list):
        return sum(count_values(item) for item in value)
    return 1
