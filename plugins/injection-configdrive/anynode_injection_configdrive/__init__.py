"""Injection by a small read-only disk that cloud-init finds by its label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from anynode_injection_configdrive.contents import ContentRules, files_of, label_of
from anynode_injection_configdrive.iso import write_iso
from appliance.errors import Unavailable
from appliance.hookspecs import PluginContext, hookimpl
from appliance.model import DiskAttachment, InjectionRequest, InjectionResult

api_versions = frozenset({1})

FILE_NAME = "config.iso"
TARGET = "vdz"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the plugin ``configdrive``."""

    static_network_types: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Types of networks without DHCP, whose instances get fixed addresses."
        ),
    ] = ("flat",)


class ConfigDrive:
    """Writes ``config.iso`` into an instance's directory."""

    def __init__(self, settings: Settings) -> None:
        self._rules = ContentRules(static_network_types=settings.static_network_types)

    @hookimpl
    def injection_inject(self, request: InjectionRequest) -> InjectionResult:
        """Write the disk unless it is there with the same contents."""
        label = label_of(request)
        files = files_of(request, self._rules)
        path = Path(request.directory) / FILE_NAME
        try:
            write_iso(path, label, files)
        except OSError as error:
            raise Unavailable(f"Could not write {path}: {error.strerror}.") from error
        disk = DiskAttachment(
            path=str(path),
            format="raw",
            target=TARGET,
            is_read_only=True,
            serial="anynode-config",
        )
        parts = ["a key" if request.metadata.public_key else "no key"]
        parts.append("user data" if request.metadata.user_data_base64 else "no user data")
        return InjectionResult(
            summary=f"Config disk {label} with {' and '.join(parts)}.", disks=(disk,)
        )

    @hookimpl
    def injection_remove(self, directory: str) -> None:
        """Delete the disk, and what an interrupted call may have left."""
        for name in (FILE_NAME, f".{FILE_NAME}.partial"):
            try:
                (Path(directory) / name).unlink(missing_ok=True)
            except NotADirectoryError:
                continue
            except OSError as error:
                raise Unavailable(
                    f"Could not delete {name} in {directory}: {error.strerror}."
                ) from error


def create(settings: Settings, context: PluginContext) -> ConfigDrive:
    """Return the plugin."""
    return ConfigDrive(settings)
