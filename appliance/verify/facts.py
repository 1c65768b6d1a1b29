"""All that is known of a node: what is on it, and what the store says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from appliance.cluster.membership import Membership
from appliance.compute.record import Held, OwedReport
from appliance.config import Config
from appliance.datapath.record import NetworkRecord, PortRecord
from appliance.errors import ConfigError
from appliance.images.store import StoredFile
from appliance.model import FirewallState, InstanceFact, NetworkSpec, NetworkState, RemotePort
from appliance.store import Store, Transaction, reach, sqlite_path
from appliance.store import facts as store_facts
from appliance.store.facts import StoreFacts
from appliance.verify.node_facts import NodeFacts, User, gather_here, is_running
from appliance.world import World

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known. What could not be read is ``None`` or missing, and in ``unread``.

    ``hidden`` names the fakes that keep what they have in the memory of the node's process.
    ``elsewhere`` are, for each network of this node that spans nodes, its ports on others, by the
    store.
    """

    now: float
    node_id: str
    is_running: bool
    store: StoreFacts
    held: Mapping[str, Held] = field(default_factory=dict)
    owed: Mapping[str, OwedReport] = field(default_factory=dict)
    ports: Mapping[str, PortRecord] = field(default_factory=dict)
    networks: Mapping[str, NetworkRecord] = field(default_factory=dict)
    hypervisor: Mapping[str, InstanceFact] | None = None
    network_states: Mapping[str, NetworkState] = field(default_factory=dict)
    elsewhere: Mapping[str, tuple[RemotePort, ...]] = field(default_factory=dict)
    firewall: FirewallState | None = None
    directories: frozenset[str] = frozenset()
    partial_files: tuple[str, ...] = ()
    image_files: tuple[StoredFile, ...] = ()
    users: tuple[User, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


Elsewhere = Mapping[str, tuple[RemotePort, ...]]


def gather(config: Config) -> Facts:
    """Look at everything once.

    What may lag behind is read first and the store last, so that an instance that comes or goes
    meanwhile is judged by the newest word on it.

    :raises ConfigError: no node was ever set up here, or it does not reach the store.
    """
    here = gather_here(config)
    store, elsewhere = read_store(
        config, lambda tx: (store_facts.read(tx), ports_elsewhere(tx, here))
    )
    return joined(here, store, elsewhere, now=time.time(), is_up=is_running(config))


def joined(
    here: NodeFacts, store: StoreFacts, elsewhere: Elsewhere, *, now: float, is_up: bool
) -> Facts:
    """Return what is known of a node.

    :param now: by the clock of the node.
    """
    return Facts(
        now=now,
        node_id=here.node_id,
        is_running=is_up,
        store=store,
        held=here.held,
        owed=here.owed,
        ports=here.ports,
        networks=here.networks,
        hypervisor=here.hypervisor,
        network_states=here.network_states,
        elsewhere=elsewhere,
        firewall=here.firewall,
        directories=here.directories,
        partial_files=here.partial_files,
        image_files=here.image_files,
        users=here.users,
        unread=here.unread,
        hidden=here.hidden,
    )


def ports_elsewhere(tx: Transaction, here: NodeFacts) -> Elsewhere:
    """Return, for each network of a node that spans nodes, its ports on others."""
    spanning = [
        record.network
        for record in here.networks.values()
        if record.network.segment and record.network.type in here.network_states
    ]
    return _elsewhere(tx, spanning, here.node_id)


def _elsewhere(
    tx: Transaction, networks: Iterable[NetworkSpec], node_id: str
) -> dict[str, tuple[RemotePort, ...]]:
    return {one.network_id: reach.whole(tx, one.network_id, 0, node_id).remotes for one in networks}


def read_store(config: Config, work: Callable[..., T]) -> T:
    """Read the store of a node, whether the node runs or not.

    :raises ConfigError: there is no store.
    """
    store = open_store(config)
    try:
        return store.read(work)
    finally:
        store.close()


def check_reach(config: Config) -> None:
    """See that this node reaches the store of its cluster.

    :raises ConfigError: it does not; the hint names those that do, as far as they are known.
    """
    member = Membership.of(config.state_dir)
    if member is None or not member.is_told or config.store.url:
        return
    names = [one.name for one in member.members.with_role("controller")]
    where = f": {', '.join(names)}" if names else ""
    raise ConfigError(
        "This node does not reach the store of its cluster, which is needed to compare with.",
        hint="Run `anynode verify --cluster` on a node that has a role of the store; it looks at "
        f"all nodes{where}.",
    )


def open_store(config: Config) -> Store:
    """Open the store of a node; never makes one.

    :raises ConfigError: there is no store, or the node does not reach that of its cluster.
    """
    check_reach(config)
    path = sqlite_path(config.store_url)
    if path and not path.exists():
        raise ConfigError(f"There is no store {path}.", hint="`anynode run` makes one.")
    return Store(config.store_url, World())
