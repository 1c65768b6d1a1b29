"""What the datapath role keeps in its journal: the networks and ports of its node."""

from __future__ import annotations

from appliance.model import InstanceMetadata, NetworkSpec, PortSpec, Value

PORT = "port"
NETWORK = "network"


class PortRecord(Value, frozen=True, kw_only=True):
    """A port that has, or is to have, its tap on this node."""

    port: PortSpec
    metadata: InstanceMetadata


class NetworkRecord(Value, frozen=True, kw_only=True):
    """A network that this node has prepared."""

    network: NetworkSpec
