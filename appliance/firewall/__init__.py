"""The pure firewall model: policies, packets, and the verdict that every plugin must reach."""

from appliance.firewall.index import PolicyIndex, link_local, own_addresses
from appliance.firewall.packet import (
    BROADCAST_MAC,
    ETHER_ARP,
    ETHER_IPV4,
    ETHER_IPV6,
    NODE,
    UPLINK,
    Arp,
    Packet,
    Verdict,
)
from appliance.firewall.policy import apply_delta, changed_groups, diff
from appliance.firewall.rules import Compiled, compile_rules, parse_rule, services
from appliance.firewall.verdict import METADATA_ADDRESS, verdict

__all__ = [
    "BROADCAST_MAC",
    "ETHER_ARP",
    "ETHER_IPV4",
    "ETHER_IPV6",
    "METADATA_ADDRESS",
    "NODE",
    "UPLINK",
    "Arp",
    "Compiled",
    "Packet",
    "PolicyIndex",
    "Verdict",
    "apply_delta",
    "changed_groups",
    "compile_rules",
    "diff",
    "link_local",
    "own_addresses",
    "parse_rule",
    "services",
    "verdict",
]
