"""EC2 on nodes that cannot answer it: a call goes, as it came, to a node that can.

Between the two nodes it travels over mutual TLS under a prefix of the peer service. Only what comes
there is heard about where a call came from.
"""

from __future__ import annotations

PREFIX = "/ec2"
"""The path of the peer service under which it takes calls for the API."""

NOT_TAKEN = "x-anynode-not-taken"
"""The header by which a peer service says that nobody there has seen a call."""

MEMBER_ID = "anynode.member"
"""Where the WSGI environment has the node id of the member that calls; empty for a stranger."""

SOURCE = "x-anynode-source"
"""The header in which one member tells another the address that a call came from.

It is no more than its word; who has said it is known from its certificate."""
