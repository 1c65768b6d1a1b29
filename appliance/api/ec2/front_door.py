"""From an HTTP request to a reply: who is it, what do they want, may they, and how it went."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.api import policy
from appliance.api.ec2 import errors
from appliance.api.ec2.action_table import ACTIONS
from appliance.api.ec2.call import Call
from appliance.api.ec2.protocol import parser as protocol_parser
from appliance.api.ec2.protocol import serializer, sts
from appliance.api.ec2.protocol.form import decode_form
from appliance.api.ec2.protocol.model import load_model
from appliance.api.ec2.protocol.parser import RequestParser
from appliance.api.ec2.refused_calls import RefusedCalls
from appliance.errors import AnynodeError, Denied, cause_chain
from appliance.hooks import Auth
from appliance.model import HttpRequest, Identity
from appliance.node import NodeParts

log = logging.getLogger(__name__)

CALLER_IDENTITY = "GetCallerIdentity"
_XML = "text/xml;charset=UTF-8"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is sent back."""

    status: int
    body: bytes
    request_id: str
    content_type: str = _XML
    is_last: bool = False


@dataclass(kw_only=True)
class _Progress:
    """How far a request has come, for its line in the log and the form of its error.

    ``action`` is empty as long as no action of ours is asked for.
    """

    request_id: str
    source: str
    action: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    is_dry_run: bool = False
    identity: Identity | None = None
    causes: Sequence[str] = field(default_factory=tuple)


class FrontDoor:
    """The EC2 API of one node."""

    def __init__(self, parts: NodeParts, auth: Auth) -> None:
        self._parts = parts
        self._auth = auth
        self._refused = RefusedCalls(parts)
        model = load_model(ACTIONS)
        self._parser = RequestParser(model)
        self._serializer = serializer.ReplySerializer(model)

    def answer(self, request: HttpRequest) -> Reply:
        """Carry out a request; whatever goes wrong becomes EC2's error document."""
        clock = self._parts.world.clock
        started = clock.monotonic()
        progress = _Progress(request_id=self._parts.world.ids.uuid(), source=request.source)
        try:
            reply = self._carry_out(request, progress, started)
        except AnynodeError as error:
            reply = self._refuse(error, progress)
        except Exception:
            log.exception("%s failed, request %s", progress.action or "?", progress.request_id)
            reply = self._refuse(errors.internal_error(), progress)
        log.info(
            "%s %d %.1f ms project=%s user=%s source=%s request=%s%s",
            progress.action or "?",
            reply.status,
            (clock.monotonic() - started) * 1000,
            progress.identity.project_id if progress.identity else "-",
            progress.identity.user_name if progress.identity else "-",
            progress.source,
            progress.request_id,
            "".join(f" <- {_one_line(cause)}" for cause in progress.causes),
        )
        return reply

    def refuse(self, error: errors.Ec2Error, source: str) -> Reply:
        """Answer a request that never got as far as having a meaning."""
        progress = _Progress(request_id=self._parts.world.ids.uuid(), source=source)
        reply = self._refuse(error, progress)
        log.info("refused %s: %s request=%s", source, error.exact_code, progress.request_id)
        return reply

    def _carry_out(self, request: HttpRequest, progress: _Progress, started: float) -> Reply:
        now = self._parts.world.clock.now()
        identity = progress.identity = self._recognise(request, progress, now)
        pairs = decode_form(request.target.partition("?")[2].encode("latin-1"))
        pairs += decode_form(request.body)
        if {"Timestamp", "Expires"} <= {name for name, _ in pairs}:
            raise errors.dated_twice()
        if ("Action", CALLER_IDENTITY) in pairs:
            return self._who_am_i(identity, progress)
        progress.action = _known_action(pairs)
        asked = self._parser.parse(pairs)
        progress.params = asked.params
        self._admit(identity, asked, progress)
        call = Call(
            action=asked.action,
            identity=identity,
            request_id=progress.request_id,
            source=request.source,
            host=dict(request.headers).get("host", ""),
            started_at=now,
            started=started,
            parts=self._parts,
        )
        result = ACTIONS[asked.action](call, asked.params)
        body = self._serializer.serialize(
            asked.action, result, request_id=progress.request_id, version=asked.version
        )
        return Reply(status=200, body=body, request_id=progress.request_id)

    def _recognise(self, request: HttpRequest, progress: _Progress, now: float) -> Identity:
        claimed = ""
        try:
            identity = self._auth.authenticate(request, now)
            if identity is not None:
                return identity
            denial: AnynodeError = errors.missing_authentication()
        except Denied as error:
            denial, claimed = error, error.claimed
        self._refused.stranger(
            claimed=claimed,
            code=denial.exact_code,
            request_id=progress.request_id,
            source=progress.source,
            now=now,
        )
        raise denial

    def _admit(self, identity: Identity, asked: protocol_parser.Call, progress: _Progress) -> None:
        progress.is_dry_run = asked.params.pop("DryRun", False)
        if not policy.is_allowed(identity, asked.action):
            raise errors.unauthorized_operation()
        if progress.is_dry_run:
            raise errors.dry_run_operation()

    def _who_am_i(self, identity: Identity, progress: _Progress) -> Reply:
        progress.action = CALLER_IDENTITY
        if not policy.is_allowed(identity, CALLER_IDENTITY):
            raise errors.unauthorized_operation()
        body = sts.serialize_caller_identity(
            account=identity.project_id,
            user_id=identity.user_id,
            arn=f"arn:aws:iam::{identity.project_id}:user/{identity.user_name}",
            request_id=progress.request_id,
        )
        return Reply(status=200, body=body, request_id=progress.request_id)

    def _refuse(self, error: AnynodeError, progress: _Progress) -> Reply:
        told = errors.as_ec2_error(error)
        if told is error or told.message == error.message:
            progress.causes = (f"{told.exact_code}: {told.message}",)
        else:
            # What the client is not told is for the operator to read.
            progress.causes = (told.exact_code, *cause_chain(error))
        self._write_down(told, progress)
        if progress.action == CALLER_IDENTITY:
            body = sts.serialize_error(
                told.exact_code,
                str(told),
                request_id=progress.request_id,
                http_status=told.http_status,
            )
        else:
            body = serializer.serialize_error(
                told.exact_code, str(told), request_id=progress.request_id
            )
        return Reply(status=told.http_status, body=body, request_id=progress.request_id)

    def _write_down(self, told: errors.Ec2Error, progress: _Progress) -> None:
        if progress.identity is None or not policy.is_change(progress.action):
            return
        if told.exact_code == "Unavailable":
            return  # the store does not answer, and would not for this either
        self._refused.call(
            progress.identity,
            action=progress.action,
            params=progress.params,
            code=told.exact_code,
            request_id=progress.request_id,
            source=progress.source,
            is_good_once=not progress.is_dry_run,
        )


def _known_action(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the action that a request asks for; empty when it is none of ours."""
    asked = [value for name, value in pairs if name == "Action"]
    return asked[-1] if asked and asked[-1] in ACTIONS else ""


def _one_line(text: str) -> str:
    """Return text with its control characters spelled out: a value may hold a whole log line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
