"""Reading what a broker brings: nothing that a login has sent ends the connection of who reads it.

A broker passes headers on without looking at all of them. What its client cannot read would end
each connection to which it is handed, one after the other, and never be taken.
"""

from __future__ import annotations

import logging
import struct
from typing import Any

import pika
from pika import frame, spec
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import AMQPError, InvalidFrameError

log = logging.getLogger(__name__)

_HEAD = struct.Struct(">BHL")
_CONTENT = struct.Struct(">HHQ")
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, OSError),
    *(RecursionError, struct.error, AMQPError),
)
_TEXTS = ("type", "message_id", "correlation_id", "reply_to", "user_id", "app_id", "expiration")


class CarefulConnection(SelectConnection):  # type: ignore[misc]
    """A connection that takes a message with unreadable properties for one without any.

    Such a one names no sender, so that nobody believes it.
    """

    def _read_frame(self) -> tuple[int, Any]:
        try:
            whole: tuple[int, Any] = frame.decode_frame(self._frame_buffer)
        except InvalidFrameError:
            raise
        except _UNREADABLE as error:
            found = without_properties(bytes(self._frame_buffer))
            if found is None:
                raise
            log.warning("a message came with properties that cannot be read: %s", error)
            return found
        return whole


def without_properties(buffer: bytes) -> tuple[int, frame.Header] | None:
    """Return the length of the frame that begins a buffer, and what it says of a message's length.

    :returns: ``None`` when it is none that begins a message.
    """
    kind, channel, size = _HEAD.unpack_from(buffer)
    if kind != spec.FRAME_HEADER or size < _CONTENT.size:
        return None
    _, _, body_size = _CONTENT.unpack_from(buffer, spec.FRAME_HEADER_SIZE)
    end = spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE
    return end, frame.Header(channel, body_size, pika.BasicProperties())


def are_texts(key: object, properties: pika.BasicProperties) -> bool:
    """Say whether all that should be text is: what is no UTF-8 comes as bytes."""
    given = (key, *(getattr(properties, name) for name in _TEXTS))
    return all(one is None or isinstance(one, str) for one in given)
