"""A unikernel on a network whose other end is this process: ARP, IPv4, ICMP and UDP, held against scapy."""

from __future__ import annotations

import logging
import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lan import (  # type: ignore[import-not-found]
    CHECKED,
    GUEST,
    GUEST_MAC,
    NEEDS_CHECKSUM,
    PEER,
    PEER_MAC,
    Lan,
    NetGuest,
    Network,
    Peer,
    Wire,
    build,
)

import shm

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, UDP  # noqa: E402
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

BROADCAST = "ff:ff:ff:ff:ff:ff"
STRANGER = "02:00:00:00:00:0c"
UDP_START, UDP_CHECKSUM = 34, 6

Until = Callable[[Callable[[], object]], None]
COUNTERS = ("runt", "foreign", "unclaimed", "malformed", "checksum", "fragment", "segments", "no_socket", "queue_full")
ECHO = """
/* Answers what comes to port 7, until "end" does; then tells its counters. */
int main(int argc, char **argv) {
    static uint8_t data[65536];
    struct net_port *port = net_must_open(NULL);
    struct udp_socket *socket = udp_must_open(port, 7);
    struct udp_peer from;
    if (argc > 1)
        net_spin(port, strtoul(argv[1], NULL, 10));
    for (uint64_t count = 0;; count++) {
        int64_t size = udp_receive_from(socket, data, sizeof data, &from, GUEST_NO_LIMIT);
        net_must("receive", size);
        net_must("answer", udp_send_to(socket, from.address, from.port, data, (size_t)size, 10000000000));
        if (size == 3 && !memcmp(data, "end", 3)) {
            report("count", count);
            break;
        }
    }
    const struct net_counters *counters = net_counters(port);
    COUNT
    return 0;
}
""".replace("COUNT", "\n    ".join(f'report("{name}", counters->{name});' for name in COUNTERS))

SENDER = """
/* send ADDRESS PORT SIZE MILLISECONDS, again and again: reports each result under its number, and its log says when. */
int main(int argc, char **argv) {
    static uint8_t data[70000];
    struct net_port *port = net_must_open(NULL);
    struct udp_socket *socket = udp_must_open(port, 4000);
    char name[3] = "r0";
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    for (int i = 1; i + 3 < argc; i += 4, name[1]++) {
        uint32_t address = net_resolve(argv[i]);
        int result = udp_send_to(socket, address, (uint16_t)strtoul(argv[i + 1], NULL, 10), data,
                                 strtoul(argv[i + 2], NULL, 10), strtoul(argv[i + 3], NULL, 10) * 1000000);
        report(name, result);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that answers."""
    return build(tmp_path_factory.mktemp("echo"), "echo", ECHO)


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that sends."""
    return build(tmp_path_factory.mktemp("sender"), "sender", SENDER)


class Station:
    """Another station of the guest's network, made of scapy: it answers when the guest asks for its address."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.asked = 0

    def send(self, packet: Packet, **offload: Any) -> None:
        self.peer.send(bytes(packet), **offload)

    def frame(self) -> tuple[Packet, tuple[int, ...]]:
        """Return the next frame."""
        frame, offload = self.peer.receive()
        return Ether(frame), offload

    def packet(self, timeout: float = 10) -> tuple[Packet, tuple[int, ...]]:
        """Return the next frame that is not ARP; meanwhile answer who asks for this station."""
        while True:
            data, offload = self.peer.receive(timeout)
            frame = Ether(data)
            if ARP not in frame:
                return frame, offload
            if frame[ARP].pdst == PEER:
                self.asked += 1
                self.send(reply_to(frame))

    def silent(self) -> bool:
        """Tell whether the guest has nothing to say but ARP."""
        try:
            self.packet(timeout=0.05)
        except shm.ChannelTimeout:
            return True
        return False

    def ends(self, guest: NetGuest) -> dict[str, int]:
        """Have the guest end; return its counters."""
        self.send(udp(b"end"))
        found, _ = self.packet()
        assert found[Raw].load == b"end"
        reports: dict[str, int] = guest.join()
        return {name: value for name, value in reports.items() if value and name != "count"}


def reply_to(request: Packet) -> Packet:
    arp = request[ARP]
    return Ether(src=PEER_MAC, dst=arp.hwsrc) / ARP(op=2, hwsrc=PEER_MAC, psrc=PEER, hwdst=arp.hwsrc, pdst=arp.psrc)


def ether(dst: str = GUEST_MAC, src: str = PEER_MAC) -> Packet:
    return Ether(dst=dst, src=src)


def udp(data: bytes, sport: int = 999, dport: int = 7, **fields: object) -> Packet:
    return ether() / IP(src=PEER, dst=GUEST) / UDP(sport=sport, dport=dport, **fields) / Raw(data)


def ping(size: int = 56, **fields: object) -> Packet:
    headers = {"src": PEER, "dst": GUEST} | fields
    return ether() / IP(**headers) / ICMP(id=77, seq=size) / Raw(random.Random(size).randbytes(size))


def finished(frame: Packet, offload: tuple[int, ...]) -> Packet:
    """Return a datagram whose checksum was left undone, with it, as whoever needs one does it."""
    flags, _, _, _, start, offset, _ = offload
    if not flags & NEEDS_CHECKSUM:
        return frame
    assert (start, offset) == (UDP_START, UDP_CHECKSUM)
    data = bytearray(bytes(frame))
    found = total(bytes(data[start:])) ^ 0xFFFF or 0xFFFF
    data[start + offset : start + offset + 2] = found.to_bytes(2, "big")
    return Ether(bytes(data))


def total(data: bytes) -> int:
    """Return the sum of RFC 1071."""
    data += bytes(len(data) % 2)
    found = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return found


def same(frame: Packet) -> Packet:
    """Return the frame as scapy makes it with checksums and lengths of its own."""
    again = frame.copy()
    for layer, names in ((IP, ("len", "chksum")), (UDP, ("len", "chksum")), (ICMP, ("chksum",))):
        for name in names if layer in again else ():
            delattr(again[layer], name)
    return Ether(bytes(again))


@pytest.fixture
def wire(lan: Lan) -> Wire:
    made: Wire = lan.wire()
    return made


@pytest.fixture
def station(lan: Lan, wire: Wire) -> Station:
    return Station(lan.peer(wire))


# --- ARP --------------------------------------------------------------------------------------------------------


def test_it_tells_that_it_is_there(lan: Lan, wire: Wire, station: Station, echo: Path) -> None:
    guest = lan.guest(echo, Network(wire))
    frame, offload = station.frame()
    assert (frame.dst, frame.src, offload) == (BROADCAST, GUEST_MAC, (0,) * 7)
    assert (frame[ARP].op, frame[ARP].psrc, frame[ARP].pdst, frame[ARP].hwsrc) == (1, GUEST, GUEST, GUEST_MAC)
    assert station.ends(guest) == {}


def test_it_answers_who_asks_for_its_address(lan: Lan, wire: Wire, station: Station, echo: Path) -> None:
    guest = lan.guest(echo, Network(wire))
    station.frame()
    for sender in (PEER, "0.0.0.0"):  # The other one asks whether the address is free (RFC 5227).
        station.send(Ether(src=PEER_MAC, dst=BROADCAST) / ARP(op=1, hwsrc=PEER_MAC, psrc=sender, pdst=GUEST))
        frame, _ = station.frame()
        arp = frame[ARP]
        assert (frame.dst, frame.src, arp.op, arp.psrc, arp.hwsrc) == (PEER_MAC, GUEST_MAC, 2, GUEST, GUEST_MAC)
        assert (arp.pdst, arp.hwdst) == (sender, PEER_MAC)
    unanswered = [
        ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst="10.7.0.9"),
        ARP(op=1, hwsrc=PEER_MAC, psrc="10.8.0.3", pdst=GUEST),
        ARP(op=1, hwsrc=PEER_MAC, psrc=GUEST, pdst=GUEST),
        ARP(op=1, hwsrc=BROADCAST, psrc=PEER, pdst=GUEST),
        ARP(op=1, hwsrc=GUEST_MAC, psrc=PEER, pdst=GUEST),
        ARP(op=1, hwsrc=PEER_MAC, psrc="10.7.0.255", pdst=GUEST),
        ARP(op=3, hwsrc=PEER_MAC, psrc=PEER, pdst=GUEST),
        ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=GUEST, hwtype=6),
        ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=GUEST, ptype=0x86DD),
    ]
    for arp in unanswered:
        station.send(Ether(src=PEER_MAC, dst=BROADCAST) / arp)
    station.send(Ether(src=PEER_MAC, dst=STRANGER) / ARP(op=1, hwsrc=PEER_MAC, psrc=PEER, pdst=GUEST))
    station.peer.send(bytes(Ether(src=PEER_MAC, dst=BROADCAST) / unanswered[0])[:41])
    # Those before it were not answered, or this would not be the next frame.
    station.send(ping(1))
    assert station.frame()[0][ICMP].seq == 1
    assert station.ends(guest) == {"malformed": len(unanswered) - 1, "foreign": 1, "runt": 1}


def test_it_asks_again_until_somebody_answers(lan: Lan, wire: Wire, station: Station, sender: Path) -> None:
    guest = lan.guest(sender, Network(wire), args=[PEER, "7", "10", "10000"] * 2)
    station.frame()
    for _ in range(3):
        frame, _ = station.frame()
        assert (frame.dst, frame[ARP].op, frame[ARP].pdst, frame[ARP].psrc) == (BROADCAST, 1, PEER, GUEST)
    station.send(reply_to(frame))
    for _ in range(2):  # The second one knows it.
        found, _ = station.packet()
        assert (found.dst, found[IP].dst, found[UDP].dport) == (PEER_MAC, PEER, 7)
    assert guest.join() == {"r0": 0, "r1": 0}


def test_what_cannot_be_sent(lan: Lan, wire: Wire, station: Station, sender: Path) -> None:
    tries = [
        ("10.7.0.77", "10", "20", -35),  # nobody there
        ("10.8.0.3", "10", "20", -34),  # no gateway
        (GUEST, "10", "20", -34),
        ("10.7.0.0", "10", "20", -34),
        ("127.0.0.1", "10", "20", -34),
        (PEER, "1473", "10000", -5),
        (PEER, "1472", "10000", 0),
    ]
    guest = lan.guest(sender, Network(wire), args=[a for at, size, ms, _ in tries for a in (at, "7", size, ms)])
    found, _ = station.packet()
    assert len(found) == 1514
    assert found[Raw].load == bytes(i * 7 % 256 for i in range(1472))
    assert guest.join() == {f"r{number}": result for number, (*_, result) in enumerate(tries)}


def test_an_address_that_stays_silent_is_given_up(lan: Lan, wire: Wire, station: Station, sender: Path) -> None:
    """By and by, though there is time: a program without a limit is not held for ever."""
    guest = lan.guest(sender, Network(wire), args=["10.7.0.77", "7", "1", "60000"])
    assert guest.join() == {"r0": -35}
    asked = [station.frame()[0][ARP].pdst for _ in range(7)]
    assert asked == [GUEST, *["10.7.0.77"] * 6]


def test_ways_out_of_the_subnet(lan: Lan, wire: Wire, station: Station, sender: Path) -> None:
    """By the gateway's station; to all; to a group's."""
    ways = {
        "192.0.2.1": PEER_MAC,
        "10.7.0.255": BROADCAST,
        "255.255.255.255": BROADCAST,
        "239.129.2.3": "01:00:5e:01:02:03",
    }
    args = [part for address in ways for part in (address, "7", "1", "10000")]
    guest = lan.guest(sender, Network(wire, gateway=PEER), args=args)
    for address, mac in ways.items():
        found, offload = station.packet()
        assert (found[IP].dst, found.dst) == (address, mac)
        assert same(finished(found, offload)) == finished(found, offload)
    assert guest.join() == {f"r{number}": 0 for number in range(len(ways))}


def test_a_neighbour_that_moved_is_found_where_it_is(lan: Lan, wire: Wire, station: Station, sender: Path) -> None:
    guest = lan.guest(
        """
        int main(void) {
            struct net_port *port = net_must_open(NULL);
            struct udp_socket *socket = udp_must_open(port, 7);
            char byte;
            for (int i = 0; i < 3; i++) {
                net_must("send", udp_send_to(socket, net_resolve("b"), 7, "x", 1, 10000000000));
                net_must("receive", udp_receive_from(socket, &byte, 1, NULL, 10000000000));
            }
            return 0;
        }
        """,
        Network(wire, names={"b": PEER}),
    )
    moved = Ether(src=STRANGER, dst=BROADCAST) / ARP(op=1, hwsrc=STRANGER, psrc=PEER, pdst=PEER)
    other = Ether(src=STRANGER, dst=BROADCAST) / ARP(op=1, hwsrc=STRANGER, psrc="10.7.0.200", pdst="10.7.0.200")
    for told, mac in ((other, PEER_MAC), (moved, PEER_MAC), (None, STRANGER)):
        assert station.packet()[0].dst == mac
        if told:
            station.send(told)
        station.send(udp(b"y"))
    guest.join()
    assert station.asked == 1


# --- ICMP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", ["0", "1000000"], ids=["asleep", "awake"])
def test_it_answers_pings_while_it_waits(lan: Lan, wire: Wire, station: Station, echo: Path, spin: str) -> None:
    guest = lan.guest(echo, Network(wire), args=[spin])
    station.frame()
    for size in (0, 1, 17, 56, 1471, 1472):
        request = ping(size)
        station.send(request)
        found, offload = station.frame()
        assert offload == (0,) * 7
        assert (found.src, found.dst, found[IP].src, found[IP].dst) == (GUEST_MAC, PEER_MAC, GUEST, PEER)
        assert (found[ICMP].type, found[ICMP].id, found[ICMP].seq) == (0, 77, size)
        assert bytes(found[ICMP].payload) == bytes(request[ICMP].payload)
        assert same(found) == found
    assert station.ends(guest) == {}
    if spin == "0":
        assert guest.waits > 0


def test_frames_may_be_padded_and_have_options(lan: Lan, wire: Wire, station: Station, echo: Path) -> None:
    guest = lan.guest(echo, Network(wire))
    station.frame()
    station.peer.send(bytes(ping(1)).ljust(60, b"\xaa"))
    assert bytes(station.frame()[0][ICMP].payload) == bytes(ping(1)[ICMP].payload)
    station.send(ping(5, options=[]) / Raw(b""))
    assert station.frame()[0][ICMP].seq == 5
    options = ether() / IP(src=PEER, dst=GUEST, options=b"\x01" * 40, ihl=15) / ICMP(id=1, seq=2) / Raw(b"options")
    station.send(options)
    found, _ = station.frame()
    assert (found[IP].ihl, found[Raw].load) == (5, b"options")
    station.send(ether() / IP(src=PEER, dst=GUEST, options=b"\x01" * 8, ihl=7) / UDP(sport=9, dport=7) / Raw(b"too"))
    assert station.packet()[0][Raw].load == b"too"
    assert station.ends(guest) == {}


# --- UDP --------------------------------------------------------------------------------------------------------


def test_datagrams_are_answered_with_right_headers(lan: Lan, wire: Wire, station: Station, echo: Path) -> None:
    guest = lan.guest(echo, Network(wire))
    rolled = random.Random(4)
    for size in [0, 1, 2, 3, 1472, *(rolled.randrange(1473) for _ in range(40))]:
        data, port = rolled.randbytes(size), rolled.randrange(1, 65536)
        station.send(udp(data, sport=port))
        found, offload = station.packet()
        whole = finished(found, offload)
        assert same(whole) == whole
        assert (whole.src, whole.dst, whole[IP].src, whole[IP].dst) == (GUEST_MAC, PEER_MAC, GUEST, PEER)
        assert (whole[IP].flags, whole[UDP].sport, whole[UDP].dport) == ("DF", 7, port)
        assert bytes(whole[UDP].payload) == data
    assert station.ends(guest) == {}
    assert station.asked == 1


def test_what_is_said_of_a_checksum(lan: Lan, wire: Wire, station: Station, echo: Path) -> None:
    """Verified, unless it is 0, undone, or found right already."""
    guest = lan.guest(echo, Network(wire))
    wrong = udp(b"spoiled", chksum=0x1234)
    taken = [
        (udp(b"none", chksum=0), {}),
        (wrong, {"flags": NEEDS_CHECKSUM, "start": UDP_START, "offset": UDP_CHECKSUM}),
        (wrong, {"flags": CHECKED}),
    ]
    for packet, offload in taken:
        station.send(packet, **offload)
        assert station.packet()[0][Raw].load == packet[Raw].load
    lost = [
        (wrong, {}),
        (wrong, {"flags": NEEDS_CHECKSUM, "start": UDP_START, "offset": UDP_CHECKSUM + 2}),
        (wrong, {"flags": NEEDS_CHECKSUM, "start": UDP_START - 2, "offset": UDP_CHECKSUM}),
        (udp(b"odd length").__class__(bytes(udp(b"odd length!"))[:-1] + b"?"), {}),
    ]
    for packet, offload in lost:
        station.send(packet, **offload)
    assert station.silent()
    assert station.ends(guest) == {"checksum": len(lost)}


def test_several_datagrams_may_come_in_one_frame(lan: Lan, echo: Path) -> None:
    """As segmentation offload makes it, where frames are long enough: each is received by itself."""
    wire = lan.wire(mtu=65535)
    station = Station(lan.peer(wire))
    guest = lan.guest(echo, Network(wire, mtu=65535))
    data = random.Random(5).randbytes(60001)
    for segment in (1400, 60000, 60001, 65535):
        station.send(udp(data), flags=NEEDS_CHECKSUM, start=UDP_START, offset=UDP_CHECKSUM, gso=(5, segment))
        pieces = [data[at : at + segment] for at in range(0, len(data), segment)]
        assert [station.packet()[0][Raw].load for _ in pieces] == pieces
    assert station.ends(guest) == {}


def broken(packet: Packet, offset: int, data: bytes) -> bytes:
    """Return a packet with bytes changed and its IPv4 header's checksum made right again."""
    found = bytearray(bytes(packet))
    found[offset : offset + len(data)] = data
    size = min((found[14] & 15) * 4, len(found) - 14)
    found[24:26] = bytes(2)
    found[24:26] = (total(bytes(found[14 : 14 + size])) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(found)


HOSTILE: list[tuple[str, bytes]] = [
    ("runt", bytes(udp(b"x"))[:14]),
    ("runt", bytes(udp(b"x"))[:33]),
    ("malformed", broken(udp(b"x"), 14, b"\x65")),  # IPv6 in IPv4's place
    ("malformed", broken(udp(b"x"), 14, b"\x44")),  # a header of 16 bytes
    ("malformed", broken(udp(b"x"), 14, b"\x4f")),  # one that is longer than the packet
    ("malformed", broken(udp(b"x"), 16, b"\x00\x13")),  # a packet shorter than its header
    ("malformed", broken(udp(b"x"), 16, b"\x00\xff")),  # one longer than its frame
    ("malformed", broken(udp(b"x"), 16, b"\xff\xff")),
    ("checksum", bytes(udp(b"x"))[:24] + b"\x12\x34" + bytes(udp(b"x"))[26:]),
    ("fragment", broken(udp(b"x"), 20, b"\x20\x00")),
    ("fragment", broken(udp(b"x"), 20, b"\x00\x01")),
    ("fragment", broken(udp(b"x"), 20, b"\x1f\xff")),
    ("runt", broken(udp(b"x"), 16, b"\x00\x1b")),  # half a UDP header
    ("malformed", broken(udp(b"x"), 38, b"\x00\x07")),  # a datagram shorter than its header
    ("malformed", broken(udp(b"x"), 38, b"\x00\x0a")),  # one longer than its packet
    ("malformed", broken(udp(b"x"), 38, b"\xff\xff")),
    ("no_socket", bytes(udp(b"x", dport=8))),
    ("no_socket", bytes(udp(b"x", dport=0))),
    ("unclaimed", bytes(ether() / IP(src=PEER, dst=GUEST, proto=6) / Raw(b"tcp"))),
    ("unclaimed", bytes(ether() / IP(src=PEER, dst=GUEST) / ICMP(type=13) / Raw(bytes(12)))),
    ("unclaimed", bytes(ether() / IP(src=PEER, dst=GUEST) / ICMP(type=8, code=1))),
    ("unclaimed", bytes(Ether(dst=GUEST_MAC, src=PEER_MAC, type=0x86DD) / Raw(bytes(60)))),
    ("unclaimed", bytes(Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER, dst="10.7.0.255") / ICMP())),  # to all
    ("runt", bytes(ether() / IP(src=PEER, dst=GUEST, proto=1) / Raw(bytes(7)))),
    ("checksum", bytes(ether() / IP(src=PEER, dst=GUEST) / ICMP(chksum=1) / Raw(b"spoiled"))),
    ("foreign", bytes(Ether(dst=STRANGER, src=PEER_MAC) / IP(src=PEER, dst=GUEST) / ICMP())),
    ("foreign", bytes(ether() / IP(src=PEER, dst="10.7.0.9") / ICMP())),
    ("foreign", bytes(Ether(dst="01:00:5e:00:00:01", src=PEER_MAC) / IP(src=PEER, dst="224.0.0.1") / ICMP())),
    ("malformed", bytes(Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER, dst=GUEST) / ICMP())),
    ("malformed", bytes(ether(src=BROADCAST) / IP(src=PEER, dst=GUEST) / ICMP())),
    *(
        ("malformed", bytes(ether() / IP(src=source, dst=GUEST) / UDP(sport=7, dport=7) / Raw(b"echo of an echo")))
        for source in (GUEST, "0.0.0.0", "10.7.0.255", "10.7.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1")
    ),
]


def test_hostile_frames_are_counted_and_change_nothing(lan: Lan, wire: Wire, station: Station, echo: Path) -> None:
    guest = lan.guest(echo, Network(wire))
    expected: dict[str, int] = {}
    for counter, frame in HOSTILE:
        station.peer.send(frame)
        expected[counter] = expected.get(counter, 0) + 1
    for message in (b"", b"\0" * 11, b"\0" * 25, b"\1" + b"\0" * 5 + b"\xff\xff" + b"\0" * 60, b"\0\4" + b"\0" * 60):
        station.peer.send_raw(message)  # no offload header, half a frame, impossible offloads
        expected["runt"] += 1
    several = [{"flags": NEEDS_CHECKSUM, "start": UDP_START, "offset": UDP_CHECKSUM, "gso": (1, 4)}, {"gso": (5, 4)}]
    for offload in several:  # TCP's kind of segments; UDP's without its checksum undone
        station.send(udp(b"many in one"), **offload)
    assert station.silent()
    assert station.ends(guest) == expected | {"segments": len(several)}


def test_datagrams_to_all_come_too(lan: Lan, wire: Wire, station: Station, echo: Path) -> None:
    guest = lan.guest(echo, Network(wire))
    for address in ("10.7.0.255", "255.255.255.255"):
        station.send(
            Ether(dst=BROADCAST, src=PEER_MAC) / IP(src=PEER, dst=address) / UDP(sport=9, dport=7) / Raw(b"all")
        )
        found, _ = station.packet()
        assert (found[IP].src, found[IP].dst) == (GUEST, PEER)
    assert station.ends(guest) == {}


def test_sockets_keep_what_is_theirs(lan: Lan, wire: Wire, station: Station) -> None:
    """While another one is waited on; as much as they have room for, in order, and no more."""
    guest = lan.guest(
        """
        int main(void) {
            static uint8_t data[2000];
            struct net_port *port = net_must_open(NULL);
            struct udp_socket *one = udp_must_open(port, 1), *two = udp_must_open(port, 2);
            struct udp_socket *free = udp_must_open(port, 0);
            struct udp_peer from;
            report("taken", udp_open(port, 2) ? 0 : net_why());
            report("ephemeral", udp_port(free));
            net_must("receive", udp_receive_from(one, data, sizeof data, &from, GUEST_NO_LIMIT));
            uint64_t kept = 0, next = 0, all = 0;
            for (int64_t size; (size = udp_receive_from(two, data, sizeof data, &from, 0)) != NET_TIMEOUT; kept++) {
                uint32_t number;
                memcpy(&number, data, 4);
                all += (uint64_t)size;
                for (int64_t i = 4; i < size; i++)
                    if (data[i] != (uint8_t)number)
                        guest_fail("byte %ld of datagram %u", (long)i, number);
                /* A short one may have had room where a long one had none. */
                if (number < next || size != 4 + (int64_t)(number * 131 % 1400) || from.port != 1000 + number)
                    guest_fail("datagram %u of %ld bytes from port %u", number, (long)size, from.port);
                next = number + 1;
            }
            report("kept", kept);
            report("bytes", all);
            report("full", net_counters(port)->queue_full);
            udp_close(two);
            udp_close(free);
            report("again", udp_port(udp_must_open(port, 2)));
            net_must("receive", udp_receive_from(one, data, sizeof data, &from, GUEST_NO_LIMIT));
            report("short", udp_receive_from(one, data, 3, &from, GUEST_NO_LIMIT));
            report("from", from.port);
            report("then", udp_receive_from(one, data, sizeof data, &from, GUEST_NO_LIMIT));
            report("lost", net_counters(port)->no_socket);
            return 0;
        }
        """,
        Network(wire),
    )
    count = 200
    for number in range(count):
        data = number.to_bytes(4, "little") + bytes([number % 256]) * (number * 131 % 1400)
        station.send(udp(data, sport=1000 + number, dport=2))
    for size in (1, 2, 4, 5):
        station.send(udp(bytes(size), sport=10 + size, dport=1))
    found = guest.join()
    assert found["kept"] + found["full"] == count
    assert 60000 < found["bytes"] + 12 * found["kept"] <= 65536
    assert found["ephemeral"] >= 49152
    assert {key: found[key] for key in ("taken", "again", "short", "from", "then", "lost")} == {
        "taken": -33, "again": 2, "short": -5, "from": 14, "then": 5, "lost": 0,
    }  # fmt: skip


def test_several_networks_are_waited_on_together(lan: Lan, until: Until) -> None:
    wires = [lan.wire(), lan.wire()]
    stations = [Station(lan.peer(wire)) for wire in wires]
    networks = [
        Network(wires[0]),
        Network(wires[1], name="wan", mac=STRANGER, address="10.9.0.2", names={"b": "10.9.0.3"}),
    ]
    guest = lan.guest(
        """
        int main(void) {
            struct udp_socket *sockets[2] = {udp_must_open(net_must_open("lan"), 7)};
            char byte;
            sockets[1] = udp_must_open(net_must_open("wan"), 7);
            report("nothing", udp_select(sockets, 2, 1000000));
            for (int i = 0; i < 20; i++) {
                int which = udp_select(sockets, 2, GUEST_NO_LIMIT);
                net_must("wait", which);
                net_must("receive", udp_receive_from(sockets[which], &byte, 1, NULL, 0));
                if (byte != '0' + which)
                    guest_fail("%c by socket %d", byte, which);
                net_must("send", udp_send_to(sockets[which], NET_BROADCAST, 7, &byte, 1, 0));
            }
            report("resolved", net_resolve("b"));
            return 0;
        }
        """,
        *networks,
    )
    other = Ether(dst=STRANGER, src=PEER_MAC) / IP(src="10.9.0.3", dst="10.9.0.2") / UDP(sport=7, dport=7) / Raw(b"1")
    until(lambda: "nothing" in guest.reports)
    for number in range(20):
        which = number % 3 == 0
        stations[which].send(other if which else udp(b"0"))
        assert stations[which].packet()[0][Raw].load == b"01"[which : which + 1]
    assert guest.join() == {"nothing": -20, "resolved": 0x0A090003}


# --- frames beside IPv4 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", ["0", "1"], ids=["frames", "served"])
def test_frames_come_all_or_all_but_ipv4(lan: Lan, wire: Wire, station: Station, served: str) -> None:
    guest = lan.guest(
        """
        int main(int argc, char **argv) {
            static uint8_t frame[2000];
            struct net_port *port = net_must_open("lan");
            if (argv[1][0] == '1')
                report("served", net_serve(port, 1000000));
            report("up", net_up(port));
            report("max", net_max_frame(port));
            report("runt", net_send(port, frame, 13, NULL, 0));
            report("long", net_send(port, frame, net_max_frame(port) + 1, NULL, 0));
            int64_t size = net_receive(port, frame, sizeof frame, NULL, GUEST_NO_LIMIT);
            report("first", frame[12] << 8 | frame[13]);
            net_must("send", net_send(port, frame, (size_t)size, NULL, GUEST_NO_LIMIT));
            report("small", net_receive(port, frame, 20, NULL, GUEST_NO_LIMIT));
            report("second", net_receive(port, frame, sizeof frame, NULL, GUEST_NO_LIMIT));
            return 0;
        }
        """,
        Network(wire),
        args=[served],
    )
    if served == "1":
        assert ARP in station.frame()[0]
    station.send(ping())
    answer, _ = station.frame()
    assert answer[ICMP].type == (0 if served == "1" else 8)
    private = Ether(dst=BROADCAST, src=PEER_MAC, type=0x88B5) / Raw(bytes(50))
    station.send(private)
    if served == "1":
        assert answer.dst == PEER_MAC
    station.send(private)
    found = guest.join()
    expected = {"up": 1, "max": 1518, "runt": -36, "long": -5, "small": -5, "second": 64}
    assert {key: found[key] for key in expected} == expected
    assert (found["first"], found.get("served")) == ((0x88B5, -20) if served == "1" else (0x0800, None))


def test_names_and_addresses(lan: Lan) -> None:
    networks = [
        Network(lan.wire(), names={"b": PEER, "load-0": "10.7.0.40"}),
        Network(lan.wire(), name="wan", address="10.9.0.2", names={"b": "10.9.0.3", "far": "10.9.0.4"}),
        Network(lan.wire(), name="bare", address=None),
    ]
    nobody = "load far.lan b.bare a.bare b. . b.nowhere 1.2.3 1.2.3.256 1.2.3.4.5 0001.2.3.4 1..2.3 -1.2.3.4".split()
    asked = dict.fromkeys(["", *nobody]) | {
        "b": PEER,
        "load-0": "10.7.0.40",
        "far": "10.9.0.4",
        "b.wan": "10.9.0.3",
        "b.lan": PEER,
        "a": GUEST,
        "a.wan": "10.9.0.2",
        "192.0.2.255": "192.0.2.255",
    }
    guest = lan.guest(
        """
        int main(int argc, char **argv) {
            char text[16];
            for (int i = 1; i < argc; i++)
                report(argv[i][0] ? argv[i] : "-", net_address_text(net_resolve(argv[i]), text));
            report("none", net_open("nowhere") ? 0 : net_why());
            struct net_port *bare = net_must_open("bare");
            report("bare", udp_open(bare, 7) ? 0 : net_why());
            report("serve", net_serve(bare, 0));
            report("same", net_open("lan") == net_open(NULL));
            report("mtu", net_info(bare)->mtu);
            net_must_open("nowhere");
            return 0;
        }
        """,
        *networks,
        args=list(asked),
    )
    with pytest.raises(AssertionError, match="nowhere: the cluster file puts this guest on no such network"):
        guest.join()
    found = guest.reports
    assert {name: found[name or "-"] for name in asked} == {name: value or "0.0.0.0" for name, value in asked.items()}
    assert [found[key] for key in ("none", "bare", "serve", "same", "mtu")] == [-30, -32, -32, 1, 1500]


# --- a switch that goes, and hostile rings ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_switch_may_go_and_another_one_come(lan: Lan, wire: Wire, echo: Path, how: str) -> None:
    """The guest sleeps, and goes on with the next one."""
    guest = lan.guest(echo, Network(wire), args=["0"])
    for number in range(3):
        peer = Peer(wire)
        station = Station(peer)
        station.send(udp(b"%d" % number))
        assert station.packet()[0][Raw].load == b"%d" % number
        if number < 2:
            peer.close()
            if how == "killed":
                for channel, role in (("out", "receive"), ("in", "send")):
                    wire.region.mark_fresh(channel, role=role)
                    wire.region.mark_gone(channel, role=role)
        assert guest.running
    assert station.ends(guest) == {}
    peer.close()


def test_without_a_switch_frames_wait_until_the_ring_is_full(lan: Lan, wire: Wire, until: Until) -> None:
    guest = lan.guest(
        """
        int main(void) {
            static uint8_t frame[1000];
            struct net_port *port = net_must_open(NULL);
            int result = 0, sent = 0;
            report("up", net_up(port));
            for (; !(result = net_send(port, frame, sizeof frame, NULL, 0)); sent++)
                frame[14] = (uint8_t)(sent + 1);
            report("at once", result);
            report("in time", net_send(port, frame, sizeof frame, NULL, 2000000));
            uint8_t *room;
            report("room", net_reserve(port, sizeof frame, &room, 2000000));
            report("sent", sent);
            guest_print("full\\n");
            net_must("send", net_send(port, frame, sizeof frame, NULL, GUEST_NO_LIMIT));
            return 0;
        }
        """,
        Network(wire),
    )
    until(lambda: "sent" in guest.reports)
    sent = guest.reports["sent"]
    assert sent > 200
    peer = lan.peer(wire)
    assert [peer.receive()[0][14] for _ in range(sent)] == [number % 256 for number in range(sent)]
    peer.receive()
    found = guest.join()
    assert [found[key] for key in ("up", "at once", "in time", "room")] == [0, -20, -20, -20]


def test_a_spoiled_ring_is_told(lan: Lan, wire: Wire) -> None:
    info = wire.region.channels["in"]
    words = memoryview(wire.region._map)[info.offset : info.offset + info.span].cast("Q")
    words[64] = 1 | 5000 << 32
    words.release()
    guest = lan.guest(
        """
        int main(void) {
            char byte;
            struct net_port *port = net_must_open(NULL);
            struct udp_socket *socket = udp_must_open(port, 7);
            report("udp", udp_receive_from(socket, &byte, 1, NULL, GUEST_NO_LIMIT));
            report("select", udp_select(&socket, 1, GUEST_NO_LIMIT));
            report("serve", net_serve(port, GUEST_NO_LIMIT));
            report("send", udp_send_to(socket, net_resolve("10.7.0.3"), 7, &byte, 1, GUEST_NO_LIMIT));
            report("frame", net_receive(port, &byte, 1, NULL, GUEST_NO_LIMIT));
            net_must("lan", -6);
            return 0;
        }
        """,
        Network(wire),
    )
    with pytest.raises(AssertionError, match="lan: the switch spoiled a ring"):
        guest.join()
    assert guest.reports == dict.fromkeys(("udp", "select", "serve", "send", "frame"), -6)


def test_a_flood_of_what_nobody_wants_ends_no_limit(lan: Lan, wire: Wire) -> None:
    """The guest's calls return when their time has passed, though the ring is never empty."""
    guest = lan.guest(
        """
        int main(void) {
            char byte;
            struct net_port *port = net_must_open(NULL);
            struct udp_socket *socket = udp_must_open(port, 7);
            net_must("first", udp_receive_from(socket, &byte, 1, NULL, GUEST_NO_LIMIT));
            for (uint64_t limit = 0; limit <= 20000000; limit += 10000000) {
                if (udp_receive_from(socket, &byte, 1, NULL, limit) != NET_TIMEOUT ||
                    udp_select(&socket, 1, limit) != NET_TIMEOUT || net_serve(port, limit) != NET_TIMEOUT ||
                    udp_send_to(socket, net_resolve("10.7.0.77"), 7, "x", 1, limit) != NET_UNREACHABLE)
                    guest_fail("no time limit");
            }
            report("junk", net_counters(port)->foreign + net_counters(port)->runt);
            return 0;
        }
        """,
        Network(wire),
    )
    sender, stop = wire.region.sender("in"), threading.Event()
    sender.send(bytes(12) + bytes(udp(b"x")))
    junk = [bytes(12) + bytes(Ether(dst=STRANGER, src=PEER_MAC) / IP(src=PEER, dst=GUEST)), b"runt"] * 100

    def flood() -> None:
        while not stop.is_set():
            try:
                sender.send_many(junk, timeout=0.1)
            except shm.ShmError:
                continue

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        assert guest.join()["junk"] > 100
    finally:
        stop.set()
        thread.join()
        sender.close()


# --- what a program is made of ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "present", "absent"),
    [
        ("return 0;", [], ["net_", "udp_"]),
        ("return net_open(NULL) != NULL;", ["net_open"], ["udp_", "net_ip", "net_arp", "net_icmp"]),
        ("return net_serve(net_open(NULL), 0);", ["net_icmp_input"], ["udp_", "net_resolve"]),
        ("return udp_open(net_open(NULL), 0) != NULL;", ["net_icmp_input", "udp_open"], ["net_resolve"]),
    ],
    ids=["none", "frames", "served", "udp"],
)
def test_a_program_has_what_it_uses(tmp_path: Path, source: str, present: list[str], absent: list[str]) -> None:
    program = build(tmp_path, "program", f"int main(void) {{ {source} }}")
    names = {line.split()[-1] for line in subprocess.check_output(["nm", program], text=True).splitlines()}
    assert set(present) <= names
    assert not [name for name in names for prefix in absent if name.startswith(prefix)]
