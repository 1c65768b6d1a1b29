"""The logins of nodes at the broker: made when a node is admitted, gone when it is removed.

Each node has its own, which may do what :mod:`appliance.bus.topology` says and nothing else. The
broker gets a hash of each password; the clear one goes to the node and is kept nowhere else.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import Any

import msgspec

from appliance.bus import topology
from appliance.bus.topology import Queue
from appliance.cluster.management import Access, Management
from appliance.cluster.services.rabbitmq import hash_password
from appliance.errors import ConfigError
from appliance.seal import Seal
from appliance.store import Transaction, cluster_secrets

log = logging.getLogger(__name__)

ACCESS = "bus-admin"
"""The name of the sealed secret that says how the broker is administered."""


class Logins:
    """The nodes' logins at one broker; every method is safe to repeat.

    Each raises :class:`Unavailable` when the broker does not answer (repeat it), and
    :class:`Denied` when the login that administers it may not.
    """

    def __init__(self, management: Management) -> None:
        self._broker = management

    def prepare(self, node_ids: Iterable[str] = ()) -> None:
        """Make the exchanges, the queues that all nodes share, and those of some nodes."""
        queues = [topology.node_queue(one) for one in node_ids]
        self._broker.import_definitions(self._shared(*queues))

    def admit(self, node_id: str, *, is_control: bool) -> str:
        """Make a node's login and its queue; return the login's new password.

        A login that the node has already gets the new password: connections go on, the old password
        opens no new one. One of the other kind stays until :meth:`retire`.
        """
        password = secrets.token_urlsafe(32)
        name = topology.login_of(node_id, is_control=is_control)
        rights = topology.permissions_of(node_id, is_control=is_control)
        place = {"user": name, "vhost": self._broker.vhost}
        definitions = self._shared(topology.node_queue(node_id)) | {
            "users": [
                {
                    "name": name,
                    "password_hash": hash_password(password),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "",
                    "limits": dict(topology.USER_LIMITS),
                }
            ],
            "permissions": [
                {
                    **place,
                    "configure": rights.configure,
                    "write": rights.write,
                    "read": rights.read,
                }
            ],
            "topic_permissions": [
                {**place, "exchange": one.exchange, "write": one.write, "read": one.read}
                for one in rights.topics
            ],
        }
        self._broker.import_definitions(definitions)
        log.info("made login %s at the broker", name)
        return password

    def promote(self, node_id: str) -> str:
        """Make a control login for a hypervisor and return its password.

        The old login goes on, so that the node is not cut off before it has learnt of the new one;
        :meth:`retire` ends it.
        """
        return self.admit(node_id, is_control=True)

    def retire(self, node_id: str, *, is_control: bool) -> None:
        """Remove one kind of login of a node and end its connections."""
        name = topology.login_of(node_id, is_control=is_control)
        self._broker.remove_user(name)
        # The broker ends what it knows of a login that is removed; an attempt to log in that was
        # under way may have been missed.
        self._broker.close_connections(name, "the node was removed")
        log.info("removed login %s at the broker", name)

    def remove(self, node_id: str) -> None:
        """Remove all that a node has at the broker; its connections end at once."""
        for is_control in (False, True):
            self.retire(node_id, is_control=is_control)
        self._broker.remove_queue(topology.node_queue(node_id).name)

    def _shared(self, *more: Queue) -> dict[str, Any]:
        queues = (*topology.shared_queues(), *more)
        vhost = self._broker.vhost
        return {
            "vhosts": [{"name": vhost}],
            "exchanges": [
                {
                    "name": name,
                    "vhost": vhost,
                    "type": "topic",
                    "durable": True,
                    "auto_delete": False,
                    "internal": False,
                    "arguments": {},
                }
                for name in topology.EXCHANGES
            ],
            "queues": [
                {
                    "name": queue.name,
                    "vhost": vhost,
                    "durable": True,
                    "auto_delete": False,
                    "arguments": dict(queue.arguments),
                }
                for queue in queues
            ],
            "bindings": [*_bindings(queues, vhost)],
        }


def _bindings(queues: Iterable[Queue], vhost: str) -> Iterable[dict[str, Any]]:
    for queue in queues:
        for binding in queue.bindings:
            yield {
                "source": binding.exchange,
                "vhost": vhost,
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": binding.key,
                "arguments": {},
            }


def keep_access(tx: Transaction, seal: Seal, access: Access) -> None:
    """Store, sealed, how the broker is administered."""
    cluster_secrets.put(tx, seal, ACCESS, msgspec.json.encode(access))


def stored_access(tx: Transaction, seal: Seal) -> Access:
    """Return how the broker is administered.

    :raises ConfigError: this store belongs to no cluster, or the sealing key is another one.
    """
    clear = cluster_secrets.find(tx, seal, ACCESS)
    if clear is None:
        raise ConfigError(
            "The store does not know how the broker is administered.",
            hint="`anynode init` makes a cluster.",
        )
    return msgspec.json.decode(clear, type=Access)
