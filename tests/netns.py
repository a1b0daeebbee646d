"""Network namespaces that a test makes and that end with it, or with its process: none has a name on this host."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from net.namespaces import inside

CLONE_NEWNET = 0x40000000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and taps are made by root only")


class Namespace:
    """A network namespace with nothing but its loopback, which is up."""

    def __init__(self) -> None:
        self._fd = -1
        thread = threading.Thread(target=self._make)
        thread.start()
        thread.join()
        assert self._fd >= 0, "no network namespace could be made"

    def _make(self) -> None:
        if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            up("lo")

    @property
    def path(self) -> Path:
        """Return a path to it, which is good as long as this process has it open."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calling thread work in it."""
        with inside(self.path):
            yield

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Make some, for the length of a `with`."""
    made: list[Namespace] = []
    try:
        made += [Namespace() for _ in range(count)]
        yield made
    finally:
        for one in made:
            one.close()


def index_of(interface: str) -> int:
    """Return the interface's number in the calling thread's namespace."""
    return socket.if_nametoindex(interface)


def up(interface: str, *addresses: str, mtu: int | None = None) -> None:
    """Bring an interface of the calling thread's namespace up, with addresses like 10.0.0.1/24; IPv6 keeps quiet."""
    quiet = Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
    if not any(":" in address for address in addresses) and quiet.exists():
        quiet.write_text("1")
    with IPRoute() as routes:
        index = index_of(interface)
        if mtu is not None:
            routes.link("set", index=index, mtu=mtu)
        routes.link("set", index=index, state="up")
        for address in addresses:
            name, _, prefix = address.partition("/")
            more = {"flags": 2} if ":" in name else {}  # no duplicate address detection
            routes.addr("add", index=index, address=name, prefixlen=int(prefix), **more)


def down(interface: str) -> None:
    """Take it down."""
    with IPRoute() as routes:
        routes.link("set", index=index_of(interface), state="down")


def veth(interface: str, peer: str, other: Namespace | None = None) -> None:
    """Make a pair of interfaces, the second one in another namespace, if one is given."""
    with IPRoute() as routes:
        routes.link("add", ifname=interface, kind="veth", peer={"ifname": peer})
        if other is not None:
            routes.link("set", index=index_of(peer), net_ns_fd=other._fd)


def remove(interface: str) -> None:
    """Remove an interface."""
    with IPRoute() as routes:
        routes.link("del", index=index_of(interface))
