"""Front ends that misbehave: each is thrown out with a reason, nothing else notices, and the next one is served."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence

import pytest
from vhost_front import NUMBERS, P_ALL, PLAIN, REPLY, VERSION, GoneError, Link, Nic, Region, wait_until


def table(regions: Sequence[Region], count: int | None = None) -> bytes:
    head = struct.pack("=II", len(regions) if count is None else count, 0)
    return head + b"".join(region.pack() for region in regions)


def whole(nic: Nic, **change: int) -> Region:
    [region] = nic.regions()
    return Region(**{**region.__dict__, **change})


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC)


def opened(path: str, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def read_only(nic: Nic) -> int:
    return opened(f"/proc/self/fd/{nic.fd}", os.O_RDONLY)


def sealed() -> int:
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, Nic.BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return fd


def state(index: int, number: int) -> bytes:
    return struct.pack("=II", index, number)


def address(nic: Nic, index: int = 0, flags: int = 0, desc: int = 0, used: int = 0, avail: int = 0) -> bytes:
    queue = nic.queues[0]
    places = (nic.uva + queue.desc + desc, nic.uva + queue.used + used, nic.uva + queue.avail + avail, 0)
    return struct.pack("=2I4Q", index, flags, *places)


Message = tuple[str | int, bytes, list[int]]
MESSAGES: dict[str, tuple[Callable[[Nic], Message], str]] = {
    "unknown request": (lambda _: (99, b"", []), "request that is not known"),
    "request 0": (lambda _: (0, b"", []), "request that is not known"),
    "a request of the far future": (lambda _: (2**32 - 1, b"", []), "request that is not known"),
    "IOTLB without an IOMMU": (lambda _: (22, bytes(40), []), "request that is not known"),
    "too short": (lambda _: ("SET_FEATURES", bytes(7), []), "size of a message"),
    "too long": (lambda _: ("SET_FEATURES", bytes(9), []), "size of a message"),
    "with a payload": (lambda _: ("GET_FEATURES", bytes(8), []), "size of a message"),
    "features that were not offered": (lambda _: ("SET_FEATURES", struct.pack("=Q", 1 << 34), []), "not offered"),
    "protocol features that were not": (
        lambda _: ("SET_PROTOCOL_FEATURES", struct.pack("=Q", 1 << 12), []),
        "not offered",
    ),
    "no descriptor for a region": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), []), "number of descriptors"),
    "one region, two descriptors": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [nic.fd, nic.fd]),
        "number of descriptors",
    ),
    "a table that says less": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)], 0), []), "number of regions"),
    "a table that says more": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)], 8), [nic.fd]), "number of regions"),
    "a table that says far too much": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic)], 0x8000001), [nic.fd]),
        "number of regions",
    ),
    "overlapping regions": (
        lambda nic: (
            "SET_MEM_TABLE",
            table([whole(nic, size=8192), whole(nic, gpa=4096, uva=nic.uva + 2**32)]),
            [nic.fd] * 2,
        ),
        "overlap",
    ),
    "overlapping user addresses": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic), whole(nic, gpa=2**40)]), [nic.fd] * 2),
        "overlap",
    ),
    "a region of no size": (lambda nic: ("SET_MEM_TABLE", table([whole(nic, size=0)]), [nic.fd]), "no size"),
    "a region that wraps": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic, gpa=2**64 - 4096)]), [nic.fd]),
        "end of addresses",
    ),
    "user addresses that wrap": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic, uva=2**64 - 4096)]), [nic.fd]),
        "end of addresses",
    ),
    "an offset that wraps": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic, offset=2**64 - 4096)]), [nic.fd]),
        "end of addresses",
    ),
    "more than the file": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic, size=nic.BYTES + 1)]), [nic.fd]),
        "shorter than the region",
    ),
    "behind the file": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic, offset=4096)]), [nic.fd]),
        "shorter than the region",
    ),
    "memory that is none": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [opened("/dev/zero")]),
        "descriptor is no memory",
    ),
    "an eventfd as memory": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [eventfd()]), "no memory"),
    "a folder as memory": (
        lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [opened("/", os.O_RDONLY)]),
        "no memory",
    ),
    "memory that is read-only": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [read_only(nic)]), "read-only"),
    "memory that is sealed": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [sealed()]), "read-only"),
    "a region twice": (lambda nic: ("ADD_MEM_REG", bytes(8) + whole(nic).pack(), [nic.fd]), "overlap"),
    "a region without its descriptor": (lambda nic: ("ADD_MEM_REG", bytes(8) + whole(nic).pack(), []), "descriptors"),
    "a region that is not there": (
        lambda nic: ("REM_MEM_REG", bytes(8) + whole(nic, size=4096).pack(), []),
        "not there",
    ),
    "a queue past the last": (lambda _: ("SET_VRING_NUM", state(16, 256), []), "number of a queue"),
    "a queue far past the last": (lambda _: ("SET_VRING_ENABLE", state(2**32 - 1, 1), []), "number of a queue"),
    "a queue to be stopped past the last": (lambda _: ("GET_VRING_BASE", state(16, 0), []), "number of a queue"),
    "a kick for a queue past the last": (
        lambda _: ("SET_VRING_KICK", struct.pack("=Q", 255), [eventfd()]),
        "number of a queue",
    ),
    "a kick with other bits": (
        lambda _: ("SET_VRING_KICK", struct.pack("=Q", 1 << 9), [eventfd()]),
        "number of a queue",
    ),
    "a queue of no size": (lambda _: ("SET_VRING_NUM", state(2, 0), []), "size of a queue"),
    "a queue of an odd size": (lambda _: ("SET_VRING_NUM", state(2, 3), []), "size of a queue"),
    "a queue that is too large": (lambda _: ("SET_VRING_NUM", state(2, 65536), []), "size of a queue"),
    "another size while it runs": (lambda _: ("SET_VRING_NUM", state(0, 128), []), "queue that runs"),
    "an index that is too large": (lambda _: ("SET_VRING_BASE", state(2, 65536), []), "index of a queue"),
    "neither on nor off": (lambda _: ("SET_VRING_ENABLE", state(0, 2), []), "neither on nor off"),
    "a log of a queue": (lambda nic: ("SET_VRING_ADDR", address(nic, flags=1), []), "log"),
    "descriptors that are not aligned": (lambda nic: ("SET_VRING_ADDR", address(nic, desc=8), []), "alignment"),
    "a ring that is not aligned": (lambda nic: ("SET_VRING_ADDR", address(nic, avail=1), []), "alignment"),
    "a used ring that is not aligned": (lambda nic: ("SET_VRING_ADDR", address(nic, used=2), []), "alignment"),
    "a kick without an eventfd": (lambda _: ("SET_VRING_KICK", struct.pack("=Q", 0), []), "number of descriptors"),
    "no kick, with an eventfd": (
        lambda _: ("SET_VRING_KICK", struct.pack("=Q", 0x100), [eventfd()]),
        "number of descriptors",
    ),
    "two calls": (lambda _: ("SET_VRING_CALL", struct.pack("=Q", 0), [eventfd(), eventfd()]), "descriptors"),
    "a pipe to call": (lambda _: ("SET_VRING_CALL", struct.pack("=Q", 0), [os.pipe()[1]]), "no eventfd"),
    "a file to be kicked by": (lambda nic: ("SET_VRING_KICK", struct.pack("=Q", 0), [nic.fd]), "no eventfd"),
    "a descriptor with a request that has none": (lambda _: ("SET_OWNER", b"", [eventfd()]), "descriptors"),
    "nine descriptors": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [nic.fd] * 9), "descriptors"),
    "a hundred descriptors": (lambda nic: ("SET_MEM_TABLE", table([whole(nic)]), [nic.fd] * 100), "descriptors"),
}


def thrown_out(lan, bad: Nic, field: str, a: Nic, b: Nic) -> None:
    """The port says why, the others go on, and the next front end is served."""
    assert bad.link.gone()
    info = wait_until(lambda: (port := lan.info("bad")).quarantined and port)
    assert info.quarantined == "protocol"
    assert field in info.field
    assert not info.up
    a.send(a.frame(b.mac, b"unharmed" * 8))
    assert b.wait()[-1][1] == a.frame(b.mac, b"unharmed" * 8)
    good = lan.again(bad.path, mac=bad.mac).start()
    assert not lan.info("bad").quarantined
    good.send(good.frame(a.mac, b"better" * 10))
    assert a.wait()[-1][1] == good.frame(a.mac, b"better" * 10)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_can_not_be(lan, name):
    make, field = MESSAGES[name]
    a, b = lan.pair()
    bad = lan.nic("bad").start()
    before = len(os.listdir("/proc/self/fd"))
    request, payload, fds = make(bad)
    bad.link.send(request, payload, fds)
    thrown_out(lan, bad, field, a, b)
    for fd in set(fds) - {bad.fd}:
        os.close(fd)
    bad.link.close()
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 20)


@pytest.mark.parametrize(("flags", "field"), [(0, "flags"), (2, "flags"), (VERSION | REPLY, "flags")])
def test_flags_that_can_not_be(lan, flags, field):
    a, b = lan.pair()
    bad = lan.nic("bad").start()
    bad.link.send("GET_FEATURES", flags=flags)
    thrown_out(lan, bad, field, a, b)


def test_a_size_that_no_message_has(lan):
    """It is refused before anybody waits for so many bytes."""
    a, b = lan.pair()
    bad = lan.nic("bad").start()
    bad.link.raw(struct.pack("=3I", NUMBERS["SET_MEM_TABLE"], VERSION, 2**32 - 1))
    thrown_out(lan, bad, "size", a, b)


def test_half_a_message(lan):
    """Nobody but its port waits for the rest; without it the front end is gone in the middle of one."""
    a, b = lan.pair()
    bad = lan.nic("bad").start()
    bad.link.raw(struct.pack("=3I", NUMBERS["SET_FEATURES"], VERSION, 8) + bytes(3))
    a.send(a.frame(b.mac, b"unharmed" * 8))
    assert b.wait()
    bad.link.socket.shutdown(socket.SHUT_WR)
    thrown_out(lan, bad, "half a message", a, b)


def test_a_port_with_half_a_message_can_be_removed(lan):
    link = Link(lan.port("a"))
    link.raw(b"\1\0")
    time.sleep(0.01)
    lan.switch.remove("a")
    assert link.gone()
    link.close()


def test_replies_that_nobody_reads(lan):
    """A front end that asks and asks and doesn't listen is thrown out, not waited for."""
    a, b = lan.pair()
    bad = lan.nic("bad").start()
    bad.link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with contextlib.suppress(GoneError, TimeoutError):
        for _ in range(10000):
            bad.link.raw(struct.pack("=3I", 1, VERSION, 0) * 100)
    info = wait_until(lambda: (port := lan.info("bad")).quarantined and port)
    assert "not taken" in info.field
    a.send(a.frame(b.mac, b"unharmed" * 8))
    assert b.wait()


def test_a_request_that_was_not_negotiated(lan):
    for name in ("GET_MAX_MEM_SLOTS", "RESET_DEVICE"):
        nic = lan.nic(name, protocol=P_ALL & ~(1 << 13 | 1 << 15))
        nic.connect().send(name)
        assert nic.link.gone()
        assert "not negotiated" in wait_until(lambda name=name: lan.info(name).field)


def test_too_many_regions(lan):
    """As many as were said, and not one more."""
    nic = lan.nic("a", features=PLAIN)
    link = nic.connect()
    most = link.number("GET_MAX_MEM_SLOTS")
    for number in range(most):
        region = Region(number * 4096, 4096, nic.uva + number * 4096, number * 4096, nic.fd)
        assert link.acknowledged("ADD_MEM_REG", bytes(8) + region.pack(), [nic.fd]) == 0
    region = Region(most * 4096, 4096, nic.uva + most * 4096, 0, nic.fd)
    link.send("ADD_MEM_REG", bytes(8) + region.pack(), [nic.fd])
    assert link.gone()
    assert "too many regions" in wait_until(lambda: lan.info("a").field)


def test_front_ends_that_come_and_go(lan):
    """Each leaves nothing behind: no descriptor, no mapping."""
    path = lan.port("a")

    def left() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum("memfd:guest" in line for line in maps)

    def come() -> None:
        with Nic(path) as nic:
            nic.start()
        wait_until(lambda: not lan.info("a").up)

    before = left()
    for _ in range(20):
        come()
    wait_until(lambda: left() == before)


def test_a_front_end_that_dies_in_full_traffic(lan):
    """Its socket is closed by the kernel; the others go on."""
    a, b = lan.pair()
    bad = lan.nic("bad").start()
    bad.send(bad.frame(a.mac, bytes(50)))
    a.wait()
    for number in range(40):
        a.send(a.frame(bad.mac, bytes(1000)))
        bad.send(bad.frame(b.mac, bytes(100)))
        if number == 20:
            bad.link.close()
    wait_until(lambda: not lan.info("bad").up)
    assert not lan.info("bad").quarantined
    b.receive()
    a.send(a.frame(b.mac, b"unharmed" * 8))
    wait_until(lambda: any(b"unharmed" in frame for _, frame in b.receive()))
