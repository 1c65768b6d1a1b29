"""Text as XML 1.0 can carry it."""

from __future__ import annotations

import re

# What XML 1.0 cannot carry at all, not even as a character reference.
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

_SPECIAL = re.compile('[&<>"\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')
_first_special = _SPECIAL.search
# A bare carriage return would be read back as a line feed.
_REPLACEMENTS = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}


def escape_xml(text: str) -> str:
    """Return text for an element or a quoted attribute; what XML cannot carry becomes U+FFFD.

    :raises TypeError: it is not a string.
    """
    if _first_special(text) is None:
        return text
    return _SPECIAL.sub(lambda match: _REPLACEMENTS.get(match[0], "\ufffd"), text)
