"""The tap and packet ports against the kernel: frames both ways, whole and segmented, tags, interfaces that go away."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from kernel_ports import (
    DROPS,
    E_DEVICE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    TAKES_CSUM,
    TAKES_TSO4,
    TAKES_TSO6,
    TAKES_USO,
    Frame,
    Harness,
    Offload,
    Port,
)
from netns import Namespace, down, index_of, namespaces, needs_root, remove, up, veth

pytestmark = needs_root
OUTSIDE, HOST = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
EXPERIMENTAL = 0x88B5
"""an EtherType that no protocol has"""
FULL, DOWN, UNFIT, OVERSIZE = (DROPS.index(reason) for reason in ("full", "down", "unfit", "oversize"))
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    return Harness()


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """The test's own namespace; it is in there all the time."""
    with namespaces(1) as [made], made.entered():
        yield made


@pytest.fixture
def pair(ns: Namespace) -> None:
    """Two interfaces that are joined, `a` and `b`, both up."""
    veth("a", "b")
    up("a")
    up("b")


@pytest.fixture
def packet(harness: Harness, pair: None) -> Iterator[Port]:
    """A packet port on `a`."""
    with harness.open("packet", "a") as port:
        yield port


@pytest.fixture
def tap(harness: Harness, ns: Namespace) -> Iterator[Port]:
    """A tap port, with 10.0.0.1 on it."""
    with harness.open("tap", "tap0") as port:
        up("tap0", "10.0.0.1/24")
        yield port


def raw(interface: str) -> socket.socket:
    """Return a packet socket that sees what comes to an interface."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    made.bind((interface, 3))
    made.settimeout(2)
    return made


def plain(number: int, size: int = 60) -> bytes:
    """Return a frame with a number."""
    return (b"\xff" * 6 + OUTSIDE + struct.pack("!HI", EXPERIMENTAL, number)).ljust(size, b"\x55")


def numbers(frames: list[Frame]) -> list[int]:
    return [struct.unpack_from("!I", frame.data, 14)[0] for frame in frames]


def ones_complement(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def undone(protocol: int, version: int, payload: bytes, gso_size: int, tag: bytes = b"") -> Frame:
    """Return a TCP or UDP frame from outside to the host, its checksum and its segmentation left undone."""
    csum_offset, transport_size = (16, 20) if protocol == 6 else (6, 8)
    length = transport_size + len(payload)
    if version == 4:
        addresses = bytes([10, 0, 0, 2, 10, 0, 0, 1])
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 7, 0x4000, 64, protocol, 0) + addresses
        ip = ip[:10] + struct.pack("!H", 0xFFFF - ones_complement(ip)) + ip[12:]
    else:
        addresses = socket.inet_pton(socket.AF_INET6, "fd00::2") + socket.inet_pton(socket.AF_INET6, "fd00::1")
        ip = struct.pack("!IHBB", 6 << 28, length, protocol, 64) + addresses
    pseudo = ones_complement(addresses + struct.pack("!HH", protocol, length))
    if protocol == 6:
        transport = struct.pack("!HHIIBBHHH", 1111, 2222, 0xFFFFFF00, 5, 0x50, 0x99, 500, pseudo, 0)  # CWR PSH ACK FIN
    else:
        transport = struct.pack("!HHHH", 1111, 2222, length, pseudo)
    ethernet = HOST + OUTSIDE + tag + struct.pack("!H", 0x0800 if version == 4 else 0x86DD)
    start = len(ethernet) + len(ip)
    gso_type = 0 if not gso_size else GSO_UDP_L4 if protocol == 17 else GSO_TCPV4 if version == 4 else GSO_TCPV6
    return Frame(
        ethernet + ip + transport + payload,
        Offload(NEEDS_CSUM, gso_type, start + transport_size if gso_size else 0, gso_size, start, csum_offset),
    )


def bare_tap(name: str) -> int:
    """Return a tap that takes no offloads: the kernel does what is undone before it gives a frame to it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def read_all(fd: int) -> list[bytes]:
    """Return the frames that lie there."""
    found = []
    while select.select([fd], [], [], 0.01)[0]:
        found.append(os.read(fd, 70000))
    return found


SIZES = [(1001, 0), (60000, 1428), (4001, 1000), (2800, 1400), (999, 1000)]
"""of a payload, and its segments (0: one frame)"""
KINDS = [(6, 4), (6, 6), (17, 4), (17, 6)]


@pytest.mark.parametrize(("protocol", "version"), KINDS)
def test_offload_as_the_kernel_does_it(harness: Harness, ns: Namespace, protocol: int, version: int) -> None:
    """Frames that the kernel finishes on their way from a packet port to a tap without offloads are what we make."""
    fd = bare_tap("bare0")
    try:
        up("bare0")
        with harness.open("packet", "bare0") as port:
            for (size, gso_size), tag in itertools.product(SIZES, (b"", b"\x81\x00\x00\x07")):
                frame = undone(protocol, version, os.urandom(size), gso_size, tag)
                assert port.send(frame, cuts=[5, 40, 900]) == 0
                result, ours = harness.offload(frame, cuts=[20, 41, 700], max_frame=1518)
                assert result == 0
                assert len(ours) == (-(-size // gso_size) if gso_size else 1)
                assert [one.data for one in ours] == read_all(fd)
    finally:
        os.close(fd)


class TestPacket:
    def test_what_it_takes(self, packet: Port) -> None:
        assert packet.port.flags == TAKES_CSUM | TAKES_TSO4 | TAKES_TSO6 | TAKES_USO
        assert packet.port.up

    def test_frames_both_ways(self, packet: Port) -> None:
        """In order, and whatever address they are for; nothing that was sent comes back."""
        with raw("b") as peer:
            for number in range(300):
                peer.send(plain(number, 60 + number * 4))
            got = packet.receive(300)
            assert [frame.data for frame in got] == [plain(number, 60 + number * 4) for number in range(300)]
            assert {frame.offload for frame in got} == {Offload()}
            for number in range(100):
                assert packet.send(Frame(plain(number, 14 + number * 15)), cuts=[number // 9]) == 0
            assert [peer.recv(2000) for _ in range(100)] == [plain(number, 14 + number * 15) for number in range(100)]
        assert not packet.wait(50)

    def test_the_ring_goes_round(self, packet: Port) -> None:
        with raw("b") as peer:
            for first in range(0, 5000, 250):
                for number in range(first, first + 250):
                    peer.send(plain(number))
                assert numbers(packet.receive(250)) == list(range(first, first + 250))
        assert packet.port.counters.missed == 0

    def test_more_than_the_ring_holds(self, packet: Port) -> None:
        """What the kernel had no room for is counted; what it had is there."""
        with raw("b") as peer:
            for number in range(5000):
                peer.send(plain(number))
            got = packet.receive(5000, timeout_ms=50)
            peer.send(plain(5000))
            assert numbers(packet.receive()) == [5000]
        assert numbers(got) == list(range(len(got)))
        assert 1000 < len(got) < 5000
        assert packet.port.counters.missed == 5000 - len(got)

    def test_frames_longer_than_a_slot(self, harness: Harness, packet: Port) -> None:
        """64 KiB of TCP comes whole, between others, in order."""
        long = undone(6, 4, os.urandom(60000), 1448)
        with harness.open("packet", "b") as peer:
            for number in range(40):
                assert peer.send(Frame(plain(number))) == 0
                assert peer.send(long) == 0
            got = packet.receive(80)
        assert numbers(got[::2]) == list(range(40))
        assert {frame.data for frame in got[1::2]} == {long.data}
        assert {(f.offload.gso_type, f.offload.gso_size, f.offload.csum_start) for f in got[1::2]} == {
            (GSO_TCPV4, 1448, 34)
        }

    def test_more_long_frames_than_wait(self, harness: Harness, packet: Port) -> None:
        long = undone(6, 4, bytes(60000), 1448)
        with harness.open("packet", "b") as peer:
            for _ in range(400):
                assert peer.send(long) == 0
            assert peer.send(Frame(plain(1))) == 0
            got = packet.receive(401, timeout_ms=50)
        assert numbers(got[-1:]) == [1]
        assert {frame.data for frame in got[:-1]} == {long.data}
        assert 50 < len(got) < 401
        assert packet.port.counters.missed == 401 - len(got)

    @pytest.mark.parametrize("long", [False, True])
    def test_tags(self, harness: Harness, packet: Port, long: bool) -> None:
        """A VLAN's tag, which the kernel keeps apart, is in the frame, and offsets are counted with it."""
        tag = b"\x81\x00\x60\x07"
        frame = undone(6, 4, os.urandom(60000 if long else 600), 1448 if long else 0, tag)
        with harness.open("packet", "b") as peer:
            assert peer.send(frame) == 0
            [got] = packet.receive()
        assert got.data == frame.data
        assert (got.offload.csum_start, got.offload.csum_offset) == (38, 16)
        assert got.offload.gso_size == frame.offload.gso_size

    def test_frames_over_the_networks_mtu(self, packet: Port) -> None:
        packet.port.max_frame = 518
        with raw("b") as peer:
            peer.send(plain(1, 519))
            peer.send(plain(2, 518))
            assert numbers(packet.receive()) == [2]
        assert packet.drops == {"oversize": 1}

    def test_frames_over_the_interfaces_mtu(self, packet: Port) -> None:
        assert packet.send(Frame(plain(1, 3000))) == OVERSIZE

    def test_an_offload_that_is_not_the_frames(self, packet: Port) -> None:
        """The kernel refuses it; the port goes on."""
        assert packet.send(Frame(plain(1, 3000), Offload(NEEDS_CSUM, 77, 0, 1000, 34, 16))) == UNFIT
        with raw("b") as peer:
            assert packet.send(Frame(plain(2))) == 0
            assert peer.recv(100) == plain(2)

    def test_memory_that_a_peer_took_away(self, packet: Port) -> None:
        """The kernel can't read it; the guard answers for it, and the frame is sent as it does."""
        with raw("b") as peer:
            assert packet.send_gone(Frame(plain(3, 900))) == 0
            assert peer.recv(1000) == plain(3, 100).ljust(900, b"\0")

    def test_an_interface_that_is_down_for_a_while(self, packet: Port) -> None:
        down("a")
        assert packet.wait(), "the port's sleeper hears of it"
        assert packet.look() == []
        assert packet.send(Frame(plain(1))) == DOWN
        assert not packet.wait(20)
        up("a")
        with raw("b") as peer:
            assert packet.send(Frame(plain(2))) == 0
            assert peer.recv(100) == plain(2)
            for _ in range(200):  # the kernel takes up to a second until it sends by an interface whose peer was down
                peer.send(plain(3))
                if packet.wait(20):
                    break
            assert set(numbers(packet.receive(timeout_ms=20))) == {3}

    @pytest.mark.parametrize("by", ["sleeping", "sending", "looking"])
    def test_an_interface_that_goes_away(self, packet: Port, by: str) -> None:
        remove("a")
        if by == "sleeping":
            assert packet.wait()
            assert packet.look() == E_DEVICE
        elif by == "sending":
            assert packet.send(Frame(plain(1))) == E_DEVICE
        else:
            assert next(seen for seen in (packet.look() for _ in range(5000)) if seen) == E_DEVICE

    def test_an_interface_that_moves_away(self, packet: Port) -> None:
        with namespaces(1) as [other]:
            from pyroute2 import IPRoute

            with IPRoute() as routes:
                routes.link("set", index=index_of("a"), net_ns_fd=other._fd)
            assert packet.wait()
            assert packet.look() == E_DEVICE

    @pytest.mark.parametrize(
        ("interface", "error"),
        [("nothing0", errno.ENODEV), ("", errno.EINVAL), ("a-name-that-is-too-long", errno.EINVAL)],
    )
    def test_no_such_interface(self, harness: Harness, ns: Namespace, interface: str, error: int) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=os.strerror(error)):
            harness.open("packet", interface)
        assert len(os.listdir("/proc/self/fd")) == before


class TestTap:
    def test_what_it_takes(self, tap: Port) -> None:
        assert tap.port.flags == TAKES_CSUM | TAKES_TSO4 | TAKES_TSO6 | TAKES_USO
        assert tap.port.up

    def test_frames_both_ways(self, tap: Port) -> None:
        with raw("tap0") as host:
            for number in range(300):
                host.send(plain(number, 60 + number * 4))
            got = tap.receive(300)
            assert [frame.data for frame in got] == [plain(number, 60 + number * 4) for number in range(300)]
            for number in range(100):
                assert tap.send(Frame(plain(number, 14 + number * 15)), cuts=[number // 9]) == 0
            assert [host.recv(2000) for _ in range(100)] == [plain(number, 14 + number * 15) for number in range(100)]

    def test_undone_frames_pass_whole(self, tap: Port) -> None:
        """64 KiB of TCP in one frame, in and out; more of them than are read at one look."""
        long = undone(6, 4, os.urandom(60000), 1448)
        with raw("tap0") as host:
            host.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            for _ in range(40):
                what = long.offload
                numbers = (what.flags, what.gso_type, what.hdr_len, what.gso_size, what.csum_start, what.csum_offset)
                host.send(struct.pack("<BBHHHH", *numbers) + long.data)
            got = tap.receive(40)
            assert {frame.data for frame in got} == {long.data}
            assert len(got) == 40
            assert got[0].offload.gso_size == 1448
            assert tap.send(long, cuts=[3, 14, 60, 5000]) == 0
            assert host.recv(70000)[10:] == long.data

    def test_more_than_the_kernel_keeps(self, tap: Port) -> None:
        """What it had no room for is counted, when the port has caught up; what it had is there."""
        with raw("tap0") as host:
            for number in range(3000):
                host.send(plain(number))
            got = tap.receive(3000, timeout_ms=20)
            host.send(plain(3000))
            assert numbers(tap.receive()) == [3000]
        assert numbers(got) == list(range(len(got)))
        assert 100 < len(got) < 3000
        assert tap.port.counters.missed == 3000 - len(got)

    def test_a_tcp_connection_of_the_host(self, tap: Port) -> None:
        """The host offers what it has left undone, and the checksum that it leaves is the pseudo header's."""
        with socket.socket() as client:
            client.setblocking(False)
            from pyroute2 import IPRoute

            with IPRoute() as routes:
                routes.neigh("add", dst="10.0.0.2", lladdr=OUTSIDE.hex(":"), ifindex=index_of("tap0"), state=128)
            assert client.connect_ex(("10.0.0.2", 2222)) == errno.EINPROGRESS
            [syn] = tap.receive()
        assert (syn.offload.flags, syn.offload.csum_start, syn.offload.csum_offset) == (NEEDS_CSUM, 34, 16)

    def test_frames_over_the_networks_mtu(self, tap: Port) -> None:
        tap.port.max_frame = 518
        with raw("tap0") as host:
            host.send(plain(1, 519))
            host.send(plain(2, 518))
            assert numbers(tap.receive()) == [2]
        assert tap.drops == {"oversize": 1}

    def test_an_offload_that_is_not_the_frames(self, tap: Port) -> None:
        """The kernel refuses what it can tell; the rest it looks at as it would with any guest's."""
        assert tap.send(Frame(plain(1, 3000), Offload(NEEDS_CSUM, 77, 0, 1000, 34, 16))) == UNFIT
        assert tap.send(Frame(plain(1))) == 0

    def test_an_interface_that_is_not_up(self, harness: Harness, ns: Namespace) -> None:
        with harness.open("tap", "tap0") as port:
            assert port.send(Frame(plain(1))) == DOWN
            assert not port.wait(20)
            up("tap0")
            assert port.send(Frame(plain(1))) == 0

    @pytest.mark.parametrize("by", ["sleeping", "sending"])
    def test_an_interface_that_goes_away(self, tap: Port, by: str) -> None:
        remove("tap0")
        if by == "sleeping":
            assert tap.wait()
            assert tap.look() == E_DEVICE
        else:
            assert tap.send(Frame(plain(1))) == E_DEVICE

    def test_it_ends_with_its_port(self, harness: Harness, ns: Namespace) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with harness.open("tap", "tap0"):
                assert index_of("tap0")
                with pytest.raises(OSError, match="busy") as caught:
                    harness.open("tap", "tap0")
                assert caught.value.errno == errno.EBUSY
        with pytest.raises(OSError, match="no interface"):
            index_of("tap0")
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize("interface", ["", "tap%d", "a-name-that-is-too-long", "a/b"])
    def test_names_that_are_none(self, harness: Harness, ns: Namespace, interface: str) -> None:
        with pytest.raises(OSError, match="Invalid argument"):
            harness.open("tap", interface)

    def test_an_idle_port_sleeps(self, tap: Port) -> None:
        began = time.process_time()
        assert not tap.wait(200)
        assert time.process_time() - began < 0.1
