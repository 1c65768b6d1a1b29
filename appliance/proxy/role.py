"""The ``proxy`` role: EC2 on a node that does not answer it itself."""

from __future__ import annotations

import logging

from appliance.api.server import Server
from appliance.errors import ConfigError
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.node import NodeParts
from appliance.proxy.app import proxy_app
from appliance.proxy.forward import Forwarder
from appliance.role import Role

log = logging.getLogger(__name__)
api_versions = frozenset({1})


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return ProxyRole()


class ProxyRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Listen where the API would, and hand every call to a member that has it.

        :raises ConfigError: the node is in no cluster.
        """
        cluster, settings = parts.cluster, parts.config.api
        if cluster is None:
            raise ConfigError(
                "A node that is in no cluster has nobody to hand a call to.",
                hint="Give it the role api, or join a cluster.",
            )
        forwarder = Forwarder(
            lambda: cluster.members.with_role("api"), cluster.client_context, parts.world.clock
        )
        app = proxy_app(forwarder)
        server = Server(
            settings.address, settings.port, app, settings.threads, name="anynode-proxy"
        )

        def start() -> None:
            server.open()
            log.info("EC2 is on http://%s:%d, by others", settings.address, server.port)

        def stop() -> None:
            server.close()
            forwarder.close()

        return Role(name="proxy", topic="proxy", start=start, stop=stop, port=lambda: server.port)
