"""The demo image for real: built, booted in an emulated machine, entered by SSH, switched off.

The network is QEMU's own, cut off from the outside: there is nothing to clean up but a process.
"""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "image/demo/build.py"
CACHED = Path("/var/cache/anynode/demo-image")
MAC = "52:54:00:12:34:56"
DEADLINE_S = 180  # a busy machine emulates slowly

pytestmark = pytest.mark.node


class Machine:
    """One emulated machine, with its console in a file."""

    def __init__(
        self, work: Path, image: Path, key: Path, *, netdev: str, seed: Path | None
    ) -> None:
        self.console_file, self.key, self.ssh_port = work / "console", key, free_port()
        self.monitor_path = work / "monitor"
        disk = work / "root.qcow2"
        base = image / "root.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk)
        drives = ["-drive", f"file={disk},if=virtio,format=qcow2"]
        if seed:
            drives += ["-drive", f"file={seed},if=virtio,format=raw,readonly=on"]
        forward = f"hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-m", "96", "-nodefaults"),
                *("-display", "none", "-no-reboot"),
                *("-kernel", image / "vmlinuz", "-initrd", image / "initrd.img"),
                *("-append", "root=/dev/vda console=ttyS0"),
                *drives,
                *("-netdev", f"user,id=net,restrict=on,{forward},{netdev}"),
                *("-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile="),
                *("-device", "virtio-rng-pci"),
                *("-serial", f"file:{self.console_file}"),
                *("-qmp", f"unix:{self.monitor_path},server=on,wait=off"),
            ],
            stdin=subprocess.DEVNULL,
        )

    def console(self) -> str:
        if not self.console_file.exists():
            return ""
        return self.console_file.read_text(errors="replace").replace("\r", "")

    def wait_for(self, pattern: str) -> str:
        """Wait until the console shows a line and return what the pattern's group matched."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if found := re.search(pattern, self.console(), re.MULTILINE):
                return found[1]
            assert self.process.poll() is None, f"the machine stopped:\n{self.console()}"
            time.sleep(0.1)
        raise AssertionError(f"no {pattern!r} on the console:\n{self.console()}")

    def ssh_command(self, command: str, *, key: Path) -> list[str]:
        options = (
            "StrictHostKeyChecking=no UserKnownHostsFile=/dev/null BatchMode=yes LogLevel=ERROR "
            f"IdentitiesOnly=yes IdentityFile={key} Port={self.ssh_port}"
        )
        flags = [word for option in options.split() for word in ("-o", option)]
        return ["ssh", "-F", "none", *flags, "root@127.0.0.1", command]

    def ssh(self, command: str) -> str:
        return run(*self.ssh_command(command, key=self.key))

    def power_button(self) -> int:
        """Press the power button and return the exit status of the machine."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.monitor_path))
            lines = monitor.makefile("rw")
            lines.readline()
            for command in ("qmp_capabilities", "system_powerdown"):
                lines.write(json.dumps({"execute": command}) + "\n")
                lines.flush()
                lines.readline()
            return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def image() -> Path:
    run(BUILD, "--output", CACHED)
    return CACHED


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
    return path


USER_DATA = """\
#!/bin/sh
echo "user data: $(hostname), $(id -u)"
exit 3
"""


@pytest.fixture(scope="module")
def from_disk(
    image: Path, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Boot a machine whose settings, a static address among them, are on a config-2 vfat disk."""
    work = tmp_path_factory.mktemp("disk")
    settings = work / "openstack/latest"
    settings.mkdir(parents=True)
    public = key.with_suffix(".pub").read_text().strip()
    (settings / "meta_data.json").write_text(
        json.dumps({"uuid": "i-0disk", "hostname": "from-disk.local", "public_keys": {"k": public}})
    )
    (settings / "user_data").write_text(USER_DATA)
    network = {
        "links": [{"id": "l", "type": "phy", "ethernet_mac_address": MAC.upper(), "mtu": 1400}],
        "networks": [
            {
                "id": "n",
                "type": "ipv4",
                "link": "l",
                "ip_address": "10.0.2.77",
                "netmask": "255.255.255.0",
                "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.2.2"}],
            }
        ],
        "services": [{"type": "dns", "address": "10.0.2.3"}],
    }
    (settings / "network_data.json").write_text(json.dumps(network))
    seed = work / "seed.img"
    run("mkfs.vfat", "-C", "-n", "config-2", seed, "1024")
    run("mcopy", "-s", "-i", seed, work / "openstack", "::")
    # QEMU forwards to the first address its DHCP server gives: say that it is ours.
    machine = Machine(work, image, key, netdev="dhcpstart=10.0.2.77", seed=seed)
    yield machine
    machine.kill()


@pytest.fixture(scope="module")
def from_metadata(
    image: Path, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Boot a machine that has DHCP and the metadata service to go by."""
    work = tmp_path_factory.mktemp("metadata")
    items = {
        "meta-data/instance-id": "i-0metadata",
        "meta-data/local-hostname": "from-metadata.local",
        "meta-data/public-keys/0/openssh-key": key.with_suffix(".pub").read_text(),
        "user-data": USER_DATA,
    }
    for name, text in items.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    reply = f"{sys.executable} {Path(__file__).with_name('metadata_reply.py')} {work}"
    service = f"net=169.254.0.0/16,guestfwd=tcp:169.254.169.254:80-cmd:{reply}"
    machine = Machine(work, image, key, netdev=service, seed=None)
    yield machine
    machine.kill()


def test_settings_from_a_disk(from_disk: Machine) -> None:
    from_disk.wait_for(r"^anynode-demo: ready: (instance i-0disk host from-disk)")
    from_disk.wait_for(r"^user data: (from-disk, 0)$")
    assert from_disk.wait_for(r"user data ended with exit status (\d+)") == "3"
    facts = from_disk.ssh("hostname; ip -o addr show eth0; ip route; cat /etc/resolv.conf")
    for fact in ("from-disk\n", "inet 10.0.2.77/24", "default via 10.0.2.2", "nameserver 10.0.2.3"):
        assert fact in facts
    assert from_disk.ssh("cat /sys/class/net/eth0/mtu") == "1400\n"


def test_the_console_shows_the_host_key(from_disk: Machine) -> None:
    shown = from_disk.wait_for(r"^(ssh-ed25519 \S+)")
    scanned = run("ssh-keyscan", "-t", "ed25519", "-p", str(from_disk.ssh_port), "127.0.0.1")
    assert shown in scanned


def test_it_has_the_tools_that_tests_of_a_node_use(from_disk: Machine) -> None:
    from_disk.ssh("for tool in ping nc wget httpd ip ssh timeout; do which $tool || exit 1; done")
    from_disk.ssh("mkdir /tmp/www; echo served >/tmp/www/page; httpd -h /tmp/www -p 127.0.0.1:80")
    assert from_disk.ssh("timeout 9 wget -q -O - http://127.0.0.1/page") == "served\n"
    from_disk.ssh("ping -c 1 127.0.0.1")


def test_a_password_does_not_let_in(from_disk: Machine) -> None:
    from_disk.wait_for(r"(ready:)")
    tried = subprocess.run(
        from_disk.ssh_command("true", key=Path("/dev/null")), capture_output=True, text=True
    )
    assert "Permission denied (publickey)" in tried.stderr


def test_settings_from_the_metadata_service(from_metadata: Machine) -> None:
    from_metadata.wait_for(r"^anynode-demo: settings from the (metadata service, with a token)")
    from_metadata.wait_for(r"^anynode-demo: ready: (instance i-0metadata host from-metadata)")
    assert from_metadata.wait_for(r"user data ended with exit status (\d+)") == "3"
    assert from_metadata.ssh("hostname") == "from-metadata\n"
    assert "inet 169.254.2.15/16" in from_metadata.ssh("ip -o addr show eth0")


def test_the_power_button_switches_it_off(from_metadata: Machine) -> None:
    from_metadata.wait_for(r"(from-metadata login:)")
    assert from_metadata.power_button() == 0
    assert "anynode-demo: powering off" in from_metadata.console()
    assert "reboot: Power down" in from_metadata.console()
