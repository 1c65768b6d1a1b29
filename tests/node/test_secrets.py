"""What is secret is in no log, in no command line, and in no file that others may read."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.seal import key_path
from tests.node.cloud import Cloud, Instance
from tests.node.conftest import CANARY
from tests.node.place import Place

pytestmark = pytest.mark.node

LARGEST = 64 << 20


@pytest.fixture
def secrets(place: Place, cloud: Cloud, one: Instance) -> dict[str, bytes]:
    """What nobody may find: the access key's secret, user data, a private key, the seal's."""
    key = cloud.key_path.read_text().splitlines()[3]
    (sealing,) = json.loads(key_path(place.state_dir).read_bytes())["keys"].values()
    return {
        "the access key": cloud.secret.encode(),
        "user data": CANARY.encode(),
        "the private key": key.encode(),
        "the seal's key": sealing.encode(),
    }


def open_files(top: Path) -> Iterator[Path]:
    """Yield the files below a folder that any user of the machine can read."""
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if Path(folder, name).lstat().st_mode & stat.S_IXOTH]
        for name in files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                yield path


def test_t56_they_are_in_no_file_that_others_may_read(
    place: Place, secrets: dict[str, bytes], one: Instance
) -> None:
    config = place.state_dir / "instances" / one.instance_id / "config.iso"
    assert secrets["user data"] in config.read_bytes()
    seen = 0
    for path in open_files(place.rig.directory):
        seen += 1
        content = path.read_bytes()[:LARGEST]
        found = [name for name, secret in secrets.items() if secret in content]
        assert not found, f"{path} shows {found}"
    assert seen > 5


def test_t56_they_are_in_no_log(place: Place, secrets: dict[str, bytes], one: Instance) -> None:
    logs = [place.log_path, place.rig.directory / "node.out"]
    logs += place.rig.outside("/var/log/libvirt/qemu").glob("*.log")
    assert any(one.instance_id.encode() in path.read_bytes() for path in logs)
    for path in logs:
        found = [name for name, secret in secrets.items() if secret in path.read_bytes()]
        assert not found, f"{path} shows {found}"


def test_t56_they_are_in_no_command_line(
    place: Place, secrets: dict[str, bytes], seen_commands: set[str]
) -> None:
    assert any("qemu-system" in line for line in seen_commands)
    for line in {*seen_commands, *place.processes().values()}:
        found = [name for name, secret in secrets.items() if secret.decode() in line]
        assert not found, f"{line} shows {found}"


def test_t56_the_store_holds_no_key_in_clear(place: Place, secrets: dict[str, bytes]) -> None:
    for path in place.state_dir.glob("*.sqlite*"):
        assert secrets["the access key"] not in path.read_bytes()
        assert secrets["the private key"] not in path.read_bytes()
        assert secrets["the seal's key"] not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
