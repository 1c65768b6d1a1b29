"""DHCP and DNS of one network: a dnsmasq of its own that outlives the program that started it.

A process is ours when its command line names our configuration file, whose name holds the hash
of its text: so a restarted node knows, without asking, whether what runs is what it wants. The
process is found by its process id file and is signalled through a pidfd, never by name.

What dnsmasq reads while it runs lies in ``reachable``, in a file per port that SIGHUP makes it
read again; its user must be able to get there. All else stays in ``private``.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import pwd
import select
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.datapath.checks import check_network, check_port
from appliance.errors import CommandFailed, ConfigError, Unavailable
from appliance.files import write_whole
from appliance.model import NetworkSpec, PortSpec
from appliance.run import spawn_daemon

_START_DEADLINE_S = 20.0
_STOP_DEADLINE_S = 10.0
_LEASE_S = 3600


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where one network's files lie: ``private`` for us, ``reachable`` for dnsmasq's user."""

    private: Path
    reachable: Path

    @property
    def leases(self) -> Path:
        return self.reachable / "leases"

    @property
    def names(self) -> Path:
        return self.reachable / "names"

    @property
    def freed(self) -> Path:
        """Addresses that the running process may still hold a lease for, with the lease's MAC."""
        return self.private / "freed"

    @property
    def process(self) -> Path:
        return self.private / "dnsmasq.pid"


def render_config(network: NetworkSpec, places: Places, user: str) -> str:
    """Return the configuration of a network's dnsmasq: addresses for known ports, nothing else."""
    check_network(network)
    span = ipaddress.IPv4Network(network.cidr)
    lines = [
        f"user={user}",
        f"pid-file={places.process}",
        f"interface={network.bridge}",
        "except-interface=lo",
        "bind-dynamic",
        "no-hosts",
        f"addn-hosts={places.names}",
        f"domain={network.domain}",
        f"local=/{network.domain}/",
        "domain-needed",
        "bogus-priv",
        "dhcp-authoritative",
        "dhcp-ignore-clid",
        "no-ping",
        "leasefile-ro",
        f"dhcp-hostsfile={places.leases}",
        f"dhcp-range={span.network_address},static,{span.netmask},{_LEASE_S}",
        f"dhcp-option=option:router,{network.gateway}",
        f"dhcp-option=option:dns-server,{network.gateway}",
        f"dhcp-option=option:mtu,{network.mtu}",
    ]
    if network.cidr6:
        span6 = ipaddress.IPv6Network(network.cidr6)
        lines += [
            "enable-ra",
            f"ra-param={network.bridge},mtu:{network.mtu},0,0",
            f"dhcp-range={span6.network_address},static,{span6.prefixlen},{_LEASE_S}",
            f"dhcp-option=option6:dns-server,[{network.gateway6}]",
        ]
    if network.dns:
        lines += ["no-resolv", "strict-order", *(f"server={server}" for server in network.dns)]
    return "\n".join(lines) + "\n"


def render_lease(network: NetworkSpec, port: PortSpec) -> str:
    """Return the line that gives a port its addresses.

    The full name keeps words such as ``ignore`` or ``1h``, which mean something to dnsmasq,
    plain hostnames.
    """
    check_port(network, port)
    addresses = [ipaddress.ip_address(text) for text in port.addresses]
    first = [str(one) for one in addresses if one.version == 4][:1]
    first += [f"[{one}]" for one in addresses if one.version == 6]
    return ",".join([port.mac, *first, f"{port.hostname}.{network.domain}"]) + "\n"


def render_names(network: NetworkSpec, port: PortSpec) -> str:
    """Return the lines of the hosts file for a port."""
    check_port(network, port)
    name = f"{port.hostname}.{network.domain} {port.hostname}"
    return "".join(f"{address} {name}\n" for address in port.addresses)


def ensure_running(network: NetworkSpec, places: Places, user: str) -> None:
    """Make sure that a dnsmasq with exactly this configuration runs.

    One that does is left alone; one with another configuration is replaced, and so is one of a
    bridge that was deleted since. Known ports stay.

    :raises ConfigError: there is no such user or bridge, or the port or address is taken by
        somebody else.
    :raises CommandFailed: dnsmasq refused; none runs.
    """
    _require_user(user)
    config = render_config(network, places, user) + _link_line(network.bridge)
    _make_places(places)
    path = _config_path(places, config)
    with _running(places) as process:
        if process and process.config == path:
            return
    stop(places)
    _start(places, path, config)


def _link_line(bridge: str) -> str:
    """Return a comment that is another one when the bridge was made anew.

    The sockets of a dnsmasq that was there before hear nothing of the new bridge.
    """
    try:
        return f"# {bridge} is link {socket.if_nametoindex(bridge)}.\n"
    except OSError as error:
        raise ConfigError(f"There is no link {bridge!r} to serve DHCP on.") from error


def _start(places: Places, path: Path, config: str) -> None:
    for old in places.private.glob("dnsmasq-*.conf"):
        old.unlink()
    shutil.rmtree(places.freed, ignore_errors=True)
    places.freed.mkdir(mode=0o700)
    write_whole(path, config.encode(), is_durable=False)
    printed = places.private / "dnsmasq.log"
    printed.unlink(missing_ok=True)
    # In the foreground it stays our child, which we can reap; its log goes to syslog all the same.
    command = ["dnsmasq", f"--conf-file={path}", "--keep-in-foreground"]
    pid = spawn_daemon(command, log_path=printed)
    pidfd = os.pidfd_open(pid)
    try:
        _wait_until_ready(_Process(pid=pid, pidfd=pidfd, config=path), places.process, printed)
    finally:
        os.close(pidfd)


def _wait_until_ready(process: _Process, written: Path, printed: Path) -> None:
    """Wait for the process id file, which dnsmasq writes once it has its sockets."""
    end = time.monotonic() + _START_DEADLINE_S
    while not (written.exists() and written.read_text().strip() == str(process.pid)):
        if process.wait(0.01):
            said = printed.read_text(errors="replace").strip()
            raise CommandFailed(f"dnsmasq ended at once with {process.config}: {said}")
        if time.monotonic() > end:
            process.send(signal.SIGKILL)
            process.wait(_STOP_DEADLINE_S)
            raise CommandFailed(f"dnsmasq did not begin to serve with {process.config}.")


def is_running(places: Places) -> bool:
    """Say whether a dnsmasq of ours runs in this place."""
    with _running(places) as process:
        return process is not None


def add_port(network: NetworkSpec, port: PortSpec, places: Places) -> None:
    """Let DHCP and DNS know a port; safe to repeat.

    :raises Unavailable: no dnsmasq runs; the port is known to the next one.
    """
    _make_places(places)
    lease = render_lease(network, port)
    names = render_names(network, port)
    is_new = _replace(places.leases / port.port_id, lease)
    is_new |= _replace(places.names / port.port_id, names)
    if not is_new:
        return
    if any(_was_leased(places, address, port.mac) for address in port.addresses):
        _restart(places)
    elif not _reload(places):
        raise Unavailable(f"No DHCP server runs for {network.network_id} on this node.")


def remove_port(port_id: str, places: Places) -> None:
    """Make DHCP and DNS forget a port; none there is no error."""
    lease = places.leases / port_id
    if lease.exists():
        mac, *fields = lease.read_text().strip().split(",")
        for field in fields[:-1]:
            write_whole(places.freed / field.strip("[]"), mac.encode(), is_durable=False)
    lease.unlink(missing_ok=True)
    (places.names / port_id).unlink(missing_ok=True)
    _reload(places)


def known_ports(places: Places) -> set[str]:
    """Return the ids of the ports that DHCP was told of."""
    if not places.leases.is_dir():
        return set()
    return {path.name for path in places.leases.iterdir()}


def stop(places: Places) -> None:
    """End the dnsmasq of this place and wait until it is gone; none there is no error.

    :raises Unavailable: it is still there after 10 s and SIGKILL.
    """
    for end in (signal.SIGTERM, signal.SIGKILL):
        with _running(places) as process:
            if not process:
                break
            process.send(end)
            if process.wait(_STOP_DEADLINE_S):
                break
    else:
        raise Unavailable(f"The dnsmasq of {places.private} does not end.")
    places.process.unlink(missing_ok=True)


def remove(places: Places) -> None:
    """End dnsmasq and remove all files of the place; none there is no error."""
    stop(places)
    for directory in (places.private, places.reachable):
        if directory.exists():
            shutil.rmtree(directory)


@dataclass(frozen=True, kw_only=True)
class _Process:
    pid: int
    pidfd: int
    config: Path

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, deadline_s: float) -> bool:
        """Say whether it has ended within that many seconds; our own child is reaped then."""
        if not select.select([self.pidfd], [], [], deadline_s)[0]:
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        return True


@contextlib.contextmanager
def _running(places: Places) -> Iterator[_Process | None]:
    """Hold the dnsmasq of this place by a pidfd, so that its id cannot become another's."""
    try:
        pid = int(places.process.read_text())
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        yield None
        return
    try:
        config = _config_of(pid)
        if config is None or config.parent != places.private:
            yield None
        else:
            yield _Process(pid=pid, pidfd=pidfd, config=config)
    finally:
        os.close(pidfd)


def _config_of(pid: int) -> Path | None:
    """Return the configuration file of a dnsmasq; ``None`` for any other process, or a dead one."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if Path(words[0]).name != "dnsmasq" or len(words) < 2:
        return None
    option, _, path = words[1].partition("=")
    return Path(path) if option == "--conf-file" else None


def _reload(places: Places) -> bool:
    with _running(places) as process:
        if process:
            process.send(signal.SIGHUP)
        return process is not None


def _restart(places: Places) -> None:
    """Start the same dnsmasq anew, without the leases that it holds in memory."""
    path = next(places.private.glob("dnsmasq-*.conf"))
    config = path.read_text()
    stop(places)
    _start(places, path, config)


def _was_leased(places: Places, address: str, mac: str) -> bool:
    """Say whether the process may refuse the address because another MAC had it."""
    note = places.freed / address
    return note.exists() and note.read_text() != mac


def _replace(path: Path, text: str) -> bool:
    if path.exists() and path.read_text() == text:
        return False
    # dnsmasq skips names that begin with a dot: it never reads half a file.
    write_whole(path, text.encode(), mode=0o644, is_durable=False)
    return True


def _config_path(places: Places, config: str) -> Path:
    return places.private / f"dnsmasq-{hashlib.sha256(config.encode()).hexdigest()[:16]}.conf"


def _make_places(places: Places) -> None:
    for directory, mode in (
        (places.private, 0o700),
        (places.freed, 0o700),
        (places.reachable, 0o755),
        (places.leases, 0o755),
        (places.names, 0o755),
    ):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(mode)
        except OSError as error:
            raise Unavailable(f"Could not make {directory}: {error.strerror}.") from error


def _require_user(user: str) -> None:
    try:
        pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigError(
            f"There is no user {user!r}, as which dnsmasq is to run.",
            hint="Install dnsmasq-base, or set dhcp_user of the network plugin.",
        ) from error
