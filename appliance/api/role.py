"""The ``api`` role: the front door of the cluster on this node."""

from __future__ import annotations

import dataclasses
import gc
import logging

from appliance import seal
from appliance.api.app import create_app
from appliance.api.ec2.front_door import FrontDoor
from appliance.api.server import Server
from appliance.hooks import Auth
from appliance.hookspecs import NoSettings, PluginContext, hookimpl
from appliance.node import NodeParts
from appliance.proxy import PREFIX
from appliance.proxy.app import from_members
from appliance.role import Role
from appliance.store.identity import StoreCredentials

log = logging.getLogger(__name__)

api_versions = frozenset({1})


def create(settings: NoSettings, context: PluginContext) -> object:
    """Make the role's plugin."""
    return ApiRole()


class ApiRole:
    """The role as a plugin."""

    @hookimpl
    def role_create(self, parts: NodeParts) -> Role:
        """Make the HTTP server; it listens from the role's start to its stop."""
        server = make_server(parts)

        def start() -> None:
            # What lives as long as the process need not be walked while a reply is made.
            gc.collect()
            gc.freeze()
            server.open()
            if parts.cluster:
                members = parts.cluster.members
                parts.cluster.doors[PREFIX] = from_members(server.wsgi_app, members.get)
            log.info("EC2 is on http://%s:%d", parts.config.api.address, server.port)

        def stop() -> None:
            if parts.cluster:
                parts.cluster.doors.pop(PREFIX, None)
            server.close()

        return Role(name="api", topic="api", start=start, stop=stop, port=lambda: server.port)


def make_server(parts: NodeParts) -> Server:
    """Return the server of a node, not yet listening.

    :raises PluginError: an authentication plugin is missing or broken.
    :raises ConfigError: the key file, EC2's service model or a setting is unusable.
    """
    settings = parts.config.api
    loader = parts.plugins
    if loader.credentials is None:
        keys = StoreCredentials(parts.need_store(), seal.load(seal.key_path(parts.state_dir)))
        loader = dataclasses.replace(loader, credentials=keys)
    auth = Auth(loader.create_all("appliance.auth", settings.auth))
    app = create_app(FrontDoor(parts, auth))
    return Server(settings.address, settings.port, app, settings.threads)
