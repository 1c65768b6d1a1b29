"""The way out for instances: source translation in a table of our own, and forwarding."""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.model import NetworkSpec
from appliance.run import run

TABLE = "anynode_nat"
_DEADLINE_S = 30.0
_RULE = re.compile(r'comment "([^"]+)"')


def render(networks: Sequence[NetworkSpec], table: str = TABLE) -> str:
    """Return the nft text that puts exactly these networks in force, as one transaction.

    What an instance sends leaves with the node's address, unless it goes to a network of the same
    VPC. The output link is named, because frames that are only bridged pass here, too, and a
    broadcast among them must keep its source.

    :param table: the caller's own table; each network type needs another.
    """
    # Adding the table first makes the deletion succeed whether there was one or not.
    lines = [f"add table ip {table}", f"delete table ip {table}"]
    if not networks:
        return "\n".join(lines) + "\n"
    lines += [
        f"table ip {table} {{",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
    ]
    for network in sorted(networks, key=lambda one: one.network_id):
        near = sorted(one.cidr for one in networks if one.vpc_id == network.vpc_id)
        lines.append(
            f"    ip saddr {network.cidr} ip daddr != {{ {', '.join(near)} }} "
            f'oifname != "{network.bridge}" masquerade comment "{network.network_id}"'
        )
    return "\n".join([*lines, "  }", "}"]) + "\n"


def apply(networks: Sequence[NetworkSpec], table: str = TABLE) -> None:
    """Put exactly these networks in force in place of what was; no network removes the table.

    :raises CommandFailed: nft refused; what was in force still is.
    """
    run(["nft", "-f", "-"], stdin=render(networks, table), deadline_s=_DEADLINE_S)


def applied(table: str = TABLE) -> set[str]:
    """Return the ids of the networks whose rule is in the kernel."""
    listing = run(["nft", "list", "tables", "ip"], deadline_s=_DEADLINE_S)
    if f"table ip {table}" not in listing.splitlines():
        return set()
    return set(_RULE.findall(run(["nft", "list", "table", "ip", table], deadline_s=_DEADLINE_S)))
