"""Threads of the test that live in the network namespace of a rig."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


class Inside:
    """Calls that see the network as a program in the namespace of ``pid`` does.

    Only the network is that of the rig. A socket stays in the namespace in which it was made,
    whichever thread uses it afterwards.
    """

    def __init__(self, pid: int) -> None:
        self._threads = ThreadPoolExecutor(
            8, thread_name_prefix="inside", initializer=_enter, initargs=(pid,)
        )

    def __call__(self, work: Callable[..., T], *arguments: object, **named: object) -> T:
        """Return what ``work`` answers inside."""
        return self._threads.submit(work, *arguments, **named).result()

    def connect(self, address: str, port: int, wait_s: float = 1.0) -> socket.socket:
        """Return a connection; :raises OSError: nobody accepted it within ``wait_s``."""
        return self(socket.create_connection, (address, port), wait_s)

    def connects(self, address: str, port: int, wait_s: float = 1.0) -> bool:
        """Say whether a connection is accepted within ``wait_s`` seconds."""
        try:
            self.connect(address, port, wait_s).close()
        except OSError:
            return False
        return True

    def fetch(self, address: str, port: int, path: str = "/") -> str:
        """Return the answer of a web server, head and body; empty when there is none."""
        try:
            with self.connect(address, port) as connection:
                connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return connection.makefile(errors="replace").read()
        except OSError:
            return ""

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(namespace)
