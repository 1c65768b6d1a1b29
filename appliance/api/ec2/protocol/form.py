"""Form encoding: the one way in which a query string or a body becomes parameters.

The signature is checked over the same reading, so that nothing else than what was signed is done.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from appliance.api.ec2 import errors

MAX_PARAMETERS = 1000


def split_form(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Return the pairs in their order, decoded; ``+`` is a space, a missing ``=`` an empty value.

    :raises Ec2Error: there are more than ``MAX_PARAMETERS``.
    """
    if raw.count(b"&") >= MAX_PARAMETERS:
        raise errors.malformed_query(f"It has more than {MAX_PARAMETERS} parameters.")
    pairs = []
    for segment in raw.split(b"&"):
        if segment:
            name, _, value = segment.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote_to_bytes(name), unquote_to_bytes(value)))
    return pairs


def decode_form(raw: bytes) -> list[tuple[str, str]]:
    """Return the pairs of a query string or form body as text.

    :raises Ec2Error: they are not UTF-8, or too many.
    """
    try:
        return [(name.decode(), value.decode()) for name, value in split_form(raw)]
    except UnicodeDecodeError as error:
        raise errors.malformed_query("It is not in UTF-8.") from error
