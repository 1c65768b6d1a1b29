"""Network namespaces for tests: a thread that lives in one, and machines on the end of a tap.

A namespace has no name and no file: it ends with its thread and with the processes and sockets
that were made in it. Needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from pyroute2 import IPRoute

from appliance.hooks import Network

P = ParamSpec("P")
R = TypeVar("R")

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


class Namespace:
    """A network namespace of its own; what :meth:`call` is given runs inside."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=_unshare)
        self.thread_id = self.call(threading.get_native_id)
        self.call(_loopback_up)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in the namespace and return its result, or raise what it raises."""
        return self._thread.submit(function, *args, **kwargs).result()

    def connect(self, other: Namespace, *, here: str, there: str) -> None:
        """Join two namespaces by a cable with an end of the given name in each, both up."""

        def make() -> None:
            with IPRoute() as netlink:
                peer = {"ifname": there, "net_ns_pid": other.thread_id}
                netlink.link("add", ifname=here, kind="veth", peer=peer)
                netlink.link("set", index=netlink.link_lookup(ifname=here)[0], state="up")

        self.call(make)
        other.call(set_up, there)

    def close(self) -> None:
        """End the namespace's thread."""
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NetworkInside(Network):
    """The facade of a network plugin whose hooks run in a namespace."""

    def __init__(self, name: str, plugin: object, namespace: Namespace) -> None:
        super().__init__(name, plugin)
        self._namespace = namespace

    def call(self, hook: str, answer: type[R], **arguments: Any) -> R:
        """Call a hook inside."""
        return self._namespace.call(lambda: Network.call(self, hook, answer, **arguments))

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call a hook inside."""
        self._namespace.call(lambda: Network.tell(self, hook, **arguments))


class Machine(Namespace):
    """A machine with a kernel's network stack whose card ``eth0`` is the other end of a tap.

    Frames are copied between the tap of a node's namespace and ``eth0``, as a hypervisor would.
    """

    def __init__(self, node: Namespace, tap: str, mac: str, *, mtu: int = 1500) -> None:
        super().__init__()
        self._far = node.call(open_tap, tap)
        self._near = self.call(open_tap, "eth0")
        self._wake, self._stop = os.pipe()
        self._copier = threading.Thread(target=self._copy, daemon=True)
        self.call(_address_card, mac, mtu)
        self._copier.start()

    def _copy(self) -> None:
        pairs = {self._far: self._near, self._near: self._far}
        while True:
            ready = select.select([*pairs, self._wake], [], [])[0]
            if self._wake in ready:
                return
            for source in ready:
                try:
                    os.write(pairs[source], os.read(source, 65600))
                except OSError:
                    # The other side is down, or its tap was removed: the frame is lost.
                    time.sleep(0.01)

    def close(self) -> None:
        """Pull the cable and end the machine."""
        os.write(self._stop, b".")
        self._copier.join()
        for fd in (self._far, self._near, self._wake, self._stop):
            os.close(fd)
        super().close()


def open_tap(name: str) -> int:
    """Open a tap of this namespace, making it if there is none; return its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return fd


def set_up(name: str, *addresses: str) -> None:
    """Set a link of this namespace up and give it addresses with their prefix lengths."""
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=name)[0]
        netlink.link("set", index=index, state="up")
        for text in addresses:
            address, _, length = text.partition("/")
            netlink.addr("add", index=index, address=address, prefixlen=int(length))


def add_route(target: str, gateway: str) -> None:
    """Add a route of this namespace."""
    with IPRoute() as netlink:
        netlink.route("add", dst=target, gateway=gateway)


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _loopback_up() -> None:
    set_up("lo")


def _address_card(mac: str, mtu: int) -> None:
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        netlink.link("set", index=index, address=mac, mtu=mtu)
        netlink.link("set", index=index, state="up")
