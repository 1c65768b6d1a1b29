"""The catalog: EC2's families in EC2's sizes, and what a file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import ConfigError
from appliance.instance_types import CATALOG, DEFAULT, load

SIZES = {
    "t2": "nano micro small medium large xlarge 2xlarge",
    "t3": "nano micro small medium large xlarge 2xlarge",
    "m5": "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge",
    "c5": "large xlarge 2xlarge 4xlarge 9xlarge 12xlarge 18xlarge 24xlarge",
    "m1": "tiny small medium large xlarge",
}


@pytest.mark.parametrize("family", sorted(SIZES))
def test_families_are_whole(family: str) -> None:
    found = [name.split(".")[1] for name in CATALOG if name.startswith(f"{family}.")]
    assert found == SIZES[family].split()


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_mib"),
    [
        ("t2.nano", 1, 512),
        ("t2.micro", 1, 1024),
        ("t2.medium", 2, 4096),
        ("t3.nano", 2, 512),
        ("t3.2xlarge", 8, 32768),
        ("m5.large", 2, 8192),
        ("m5.24xlarge", 96, 393216),
        ("c5.large", 2, 4096),
        ("c5.9xlarge", 36, 73728),
        ("c5.24xlarge", 96, 196608),
        ("r5.xlarge", 4, 32768),
    ],
)
def test_sizes_are_amazons(name: str, vcpus: int, memory_mib: int) -> None:
    assert (CATALOG[name].vcpus, CATALOG[name].memory_mib) == (vcpus, memory_mib)


def write(folder: Path, text: str) -> Path:
    path = folder / "types.toml"
    path.write_text(text)
    return path


ONE = '[types."x1.huge"]\nvcpus = 3\nmemory_mib = 5000\n'


def test_no_file() -> None:
    assert load(None) is CATALOG
    assert DEFAULT in CATALOG


def test_a_file_adds_and_replaces(tmp_path: Path) -> None:
    small = '[types."t3.micro"]\nvcpus = 1\nmemory_mib = 700\ndisk_gib = 4\n'
    found = load(write(tmp_path, ONE + small))
    assert list(found) == [*CATALOG, "x1.huge"]
    assert (found["x1.huge"].vcpus, found["x1.huge"].disk_gib) == (3, 0)
    assert (found["t3.micro"].memory_mib, found["t3.micro"].disk_gib) == (700, 4)
    assert CATALOG["t3.micro"].memory_mib == 1024


def test_a_file_may_be_all(tmp_path: Path) -> None:
    assert list(load(write(tmp_path, f"only = true\n{ONE}"))) == ["x1.huge"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[types",
        "types = 3",
        "[types]",
        ONE + "cpus = 3",
        ONE.replace("3", "0"),
        ONE.replace("3", '"3"'),
        ONE.replace("x1.huge", "Huge"),
        ONE.replace("x1.huge", "x1.huge.more"),
        ONE.replace("memory_mib = 5000", ""),
    ],
)
def test_what_is_no_file_of_types(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is no file of instance types") as caught:
        load(write(tmp_path, text))
    assert caught.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")
