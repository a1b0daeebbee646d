"""A Linux bridge with a tap for each guest, in a network namespace that nobody else is in.

Neither has a name on this host: both are there as long as somebody has their descriptors open, so a killed
benchmark leaves none of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from hostd.bench import BenchError
from net.errors import NetError
from net.namespaces import inside

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
IFREQ = struct.Struct("16sH22x")
BRIDGE = "bridge"


@contextlib.contextmanager
def bridged_taps(count: int, mtu: int) -> Iterator[list[int]]:
    """Make `count` taps on one bridge; yield a descriptor of each, which carries offload headers. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        try:
            namespace = stack.enter_context(_namespace())
            with inside(namespace):
                taps = [stack.enter_context(_tap(f"tap{number}")) for number in range(count)]
                _join([f"tap{number}" for number in range(count)], mtu)
        except (NetError, OSError) as error:
            raise BenchError(f"the guests' bridge can't be made: {error}; it takes root and /dev/net/tun") from None
        yield taps


@contextlib.contextmanager
def _namespace() -> Iterator[Path]:
    """Make a network namespace; yield a path to it."""
    made: list[int] = []

    def make() -> None:
        if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise NetError("no network namespace can be made")
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{made[0]}")
    finally:
        os.close(made[0])


@contextlib.contextmanager
def _tap(name: str) -> Iterator[int]:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tap, TUNSETIFF, IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        yield tap
    finally:
        os.close(tap)


def _join(taps: list[str], mtu: int) -> None:
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as links:
            links.link("add", ifname=BRIDGE, kind="bridge")
            bridge = links.link_lookup(ifname=BRIDGE)[0]
            for name in taps:
                links.link("set", index=links.link_lookup(ifname=name)[0], master=bridge, mtu=mtu, state="up")
            links.link("set", index=bridge, state="up")
    except NetlinkError as error:
        raise NetError(str(error)) from None
