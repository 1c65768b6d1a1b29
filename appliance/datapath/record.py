"""What the datapath role keeps in its journal: the networks and ports of its node."""

from __future__ import annotations

from appliance.model import BlockDeviceSpec, InstanceMetadata, NetworkSpec, PortSpec, Value

PORT = "port"
NETWORK = "network"


class PortRecord(Value, frozen=True, kw_only=True):
    """A port of which this node has, or is to have, the tap or the rules."""

    port: PortSpec
    metadata: InstanceMetadata
    block_devices: tuple[BlockDeviceSpec, ...] = ()
    is_attached: bool = True
    is_guarded: bool = False


class NetworkRecord(Value, frozen=True, kw_only=True):
    """A network that this node has prepared."""

    network: NetworkSpec
