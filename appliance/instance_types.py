"""The instance types on offer: EC2's names and sizes, and those of a file of one's own."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from appliance.errors import ConfigError


class InstanceType(Struct, frozen=True, kw_only=True):
    """A size of instances. ``disk_gib`` is the root disk's; 0 means the size of the image."""

    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int = 0


Catalog = Mapping[str, InstanceType]

DEFAULT = "m1.small"

_GIB = 1024
# m1.* are those of the first clouds; the sizes of the others are Amazon's.
_FIRST: tuple[tuple[str, int, int, int], ...] = (
    ("m1.tiny", 1, 512, 0),
    ("m1.small", 1, 2 * _GIB, 20),
    ("m1.medium", 2, 4 * _GIB, 40),
    ("m1.large", 4, 8 * _GIB, 80),
    ("m1.xlarge", 8, 16 * _GIB, 160),
)
_BURSTABLE: tuple[tuple[str, int, int, int], ...] = (
    ("nano", 1, 2, 512),
    ("micro", 1, 2, 1 * _GIB),
    ("small", 1, 2, 2 * _GIB),
    ("medium", 2, 2, 4 * _GIB),
    ("large", 2, 2, 8 * _GIB),
    ("xlarge", 4, 4, 16 * _GIB),
    ("2xlarge", 8, 8, 32 * _GIB),
)
"""Size, vcpus of t2 and of t3, and memory."""

_GENERAL = {
    "large": 2,
    "xlarge": 4,
    "2xlarge": 8,
    "4xlarge": 16,
    "8xlarge": 32,
    "12xlarge": 48,
    "16xlarge": 64,
    "24xlarge": 96,
}
_COMPUTE = {
    "large": 2,
    "xlarge": 4,
    "2xlarge": 8,
    "4xlarge": 16,
    "9xlarge": 36,
    "12xlarge": 48,
    "18xlarge": 72,
    "24xlarge": 96,
}
_FIXED: tuple[tuple[str, Mapping[str, int], int], ...] = (
    ("m5", _GENERAL, 4 * _GIB),
    ("c5", _COMPUTE, 2 * _GIB),
    ("r5", _GENERAL, 8 * _GIB),
)
"""Family, vcpus by size, and memory per vcpu."""


def _built_in() -> Iterator[InstanceType]:
    for name, vcpus, memory_mib, disk_gib in _FIRST:
        yield InstanceType(name=name, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
    for place, family in ((1, "t2"), (2, "t3")):
        for row in _BURSTABLE:
            yield InstanceType(name=f"{family}.{row[0]}", vcpus=int(row[place]), memory_mib=row[3])
    for family, sizes, memory_mib in _FIXED:
        for size, vcpus in sizes.items():
            yield InstanceType(name=f"{family}.{size}", vcpus=vcpus, memory_mib=vcpus * memory_mib)


CATALOG: Catalog = MappingProxyType({kind.name: kind for kind in _built_in()})
"""Every built-in instance type by its name, smallest family first."""


class _Size(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    vcpus: Annotated[int, Meta(ge=1)]
    memory_mib: Annotated[int, Meta(ge=1)]
    disk_gib: Annotated[int, Meta(ge=0)] = 0


_Name = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,20}\.[a-z0-9-]{1,11}$")]


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of instance types. ``only`` leaves the built-in ones out."""

    types: Annotated[dict[_Name, _Size], Meta(min_length=1)]
    only: bool = False


def load(path: Path | None) -> Catalog:
    """Return the built-in types with those of a TOML file, which replace the ones they name.

    :param path: ``None`` for the built-in ones.
    :raises ConfigError: the file cannot be read, or is no file of instance types.
    """
    if path is None:
        return CATALOG
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        file = msgspec.convert(raw, _File)
    except OSError as error:
        raise ConfigError(
            f"Could not read the instance types in {path}: {error.strerror}.",
            hint="Name a TOML file that is there.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{path} is no file of instance types: {error}.",
            hint='It has sections such as [types."x1.huge"] with vcpus, memory_mib and disk_gib.',
        ) from error
    own = {
        name: InstanceType(
            name=name, vcpus=size.vcpus, memory_mib=size.memory_mib, disk_gib=size.disk_gib
        )
        for name, size in file.types.items()
    }
    return MappingProxyType(own if file.only else {**CATALOG, **own})
