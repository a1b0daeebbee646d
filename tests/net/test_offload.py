"""What a sender left undone, done in software: held against scapy, which shares nothing with it; hostile headers."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_ports import (
    DROPS,
    FRAME_MAX,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    HARNESS,
    NEEDS_CSUM,
    PIECES,
    TAKES_CSUM,
    Frame,
    Harness,
    Offload,
    compile_harness,
)

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop  # noqa: E402
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

UNFIT, OVERSIZE, FULL = DROPS.index("unfit"), DROPS.index("oversize"), DROPS.index("full")
MSS_OPTION = ("MSS", 1460)
SEGMENTS = 8
"""of a case, at most: scapy takes its time"""
MORE = 20 if os.environ.get("HOSTD_LONG") else 1


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    return Harness()


class Case:
    """A frame to be finished: scapy's headers, a payload, and how far the headers go."""

    def __init__(self, headers: Packet, payload: bytes) -> None:
        self.headers, self.payload = headers, payload
        self.transport = headers.getlayer(TCP) or headers.getlayer(UDP)
        self.ip = headers.getlayer(IP) or headers.getlayer(IPv6)
        self.tcp = isinstance(self.transport, TCP)
        self.start = len(bytes(headers)) - len(bytes(self.transport))
        self.csum_offset = 16 if self.tcp else 6

    def whole(self) -> bytes:
        """Return the frame with all lengths and checksums, as scapy makes them."""
        return bytes(self.headers / Raw(self.payload))

    def undone(self) -> bytearray:
        """Return the frame as a sender hands it over: the pseudo header's sum where the checksum will be."""
        data = bytearray(self.whole())
        struct.pack_into("!H", data, self.start + self.csum_offset, self.pseudo_sum(len(data) - self.start))
        return data

    def pseudo_sum(self, length: int) -> int:
        raw = bytes(self.ip)
        addresses = raw[12:20] if isinstance(self.ip, IP) else raw[8:40]
        return ones_complement(addresses + struct.pack("!HH", 6 if self.tcp else 17, length))

    def gso_type(self) -> int:
        if not self.tcp:
            return GSO_UDP_L4
        return GSO_TCPV4 if isinstance(self.ip, IP) else GSO_TCPV6

    def offload(self, gso_size: int = 0) -> Offload:
        gso_type = self.gso_type() if gso_size else GSO_NONE
        return Offload(NEEDS_CSUM, gso_type, 0, gso_size, self.start, self.csum_offset)

    def segments(self, gso_size: int) -> list[bytes]:
        """Return what the frame becomes: each segment made by scapy from the start."""
        found = []
        parts = [self.payload[at : at + gso_size] for at in range(0, len(self.payload), gso_size)] or [b""]
        for number, part in enumerate(parts):
            copy = self.headers.copy()
            if IP in copy:
                copy[IP].id = (self.ip.id + number) & 0xFFFF
            if self.tcp:
                copy[TCP].seq = (self.transport.seq + number * gso_size) & 0xFFFFFFFF
                off = ("" if number == 0 else "C") + ("" if number == len(parts) - 1 else "FP")
                copy[TCP].flags = "".join(flag for flag in str(self.transport.flags) if flag not in off)
            found.append(bytes(copy / Raw(part)))
        return found


def ones_complement(data: bytes) -> int:
    """Return the folded sum of RFC 1071, word by word."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


words, longs = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


@st.composite
def cases(draw: st.DrawFn, largest: int = 6000) -> Case:
    """Any headers that there are offloads for: VLAN tags, options, extension headers."""
    packet: Packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for vlan in draw(st.lists(st.integers(0, 4095), max_size=2)):
        packet /= Dot1Q(vlan=vlan)
    if draw(st.booleans()):
        options = draw(st.sampled_from([b"", b"\x01" * 4, b"\x94\x04\0\0", b"\x01" * 40]))
        packet /= IP(src="10.0.0.1", dst="10.0.0.2", id=draw(words), ttl=9, flags=draw(st.sampled_from(["", "DF"])),
                     tos=draw(st.integers(0, 255)), options=options)  # fmt: skip
    else:
        packet /= IPv6(src="fd00::1", dst="fd00::2", fl=draw(st.integers(0, 0xFFFFF)), tc=draw(st.integers(0, 255)))
        for extension in draw(st.lists(st.sampled_from([IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt]), max_size=2)):
            packet /= extension()
    ports = {"sport": draw(words), "dport": draw(st.integers(20000, 0xFFFF))}
    if draw(st.booleans()):
        options = draw(st.sampled_from([[], [MSS_OPTION], [("Timestamp", (1, 2))], [("NOP", None)] * 40]))
        flags = "".join(flag for flag in "FSRPAUEC" if draw(st.booleans()))
        packet /= TCP(**ports, seq=draw(longs), ack=draw(longs), flags=flags, window=draw(words), options=options)
    else:
        packet /= UDP(**ports)
    size = draw(st.integers(0, largest))
    return Case(packet, draw(st.randoms(use_true_random=False)).randbytes(size))


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[int]:
    """Where a frame's pieces end, all sizes of them: the first lengths of descriptors, too."""
    return sorted(draw(st.lists(st.integers(0, size), max_size=PIECES - 1)))


@settings(max_examples=60 * MORE, deadline=None)
@given(data=st.data())
def test_a_checksum_is_made(harness: Harness, data: st.DataObject) -> None:
    case = data.draw(cases())
    frame = Frame(bytes(case.undone()), case.offload())
    result, sent = harness.offload(frame, cuts=data.draw(cuts(len(frame.data))))
    assert result == 0
    assert [(one.data, one.offload) for one in sent] == [(case.whole(), Offload())]


@settings(max_examples=60 * MORE, deadline=None)
@given(data=st.data())
def test_segments_are_made(harness: Harness, data: st.DataObject) -> None:
    case = data.draw(cases())
    gso_size = data.draw(st.integers(max(8, len(case.payload) // SEGMENTS), 1500))
    frame = Frame(bytes(case.undone()), case.offload(gso_size))
    result, sent = harness.offload(frame, cuts=data.draw(cuts(len(frame.data))))
    assert result == 0
    expected = case.segments(gso_size)
    assert [one.data for one in sent] == expected
    assert all(one.offload == Offload() for one in sent)


@settings(max_examples=30 * MORE, deadline=None)
@given(data=st.data())
def test_a_port_that_takes_checksums_gets_segments_without(harness: Harness, data: st.DataObject) -> None:
    """And they are the same once the checksums are made."""
    case = data.draw(cases())
    gso_size = data.draw(st.integers(max(8, len(case.payload) // SEGMENTS), 1500))
    frame = Frame(bytes(case.undone()), case.offload(gso_size))
    result, sent = harness.offload(frame, flags=TAKES_CSUM)
    assert result == 0
    assert {one.offload for one in sent} == {case.offload()}
    finished = [harness.offload(one) for one in sent]
    assert [one.data for result, [one] in finished] == case.segments(gso_size)


def test_the_longest_frame(harness: Harness) -> None:
    """64 KiB of TCP in pages, as a Linux guest sends them; ECN; numbers that go round."""
    headers = (
        Ether() / IP(src="10.0.0.1", dst="10.0.0.2", id=0xFFF0) / TCP(seq=0xFFFFFF00, flags="PAC", options=[MSS_OPTION])
    )
    case = Case(headers, bytes(range(256)) * 255)
    undone = case.undone()
    offload = Offload(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 0, 1448, case.start, case.csum_offset)
    pages = [66 + 4096 * page for page in range(16)]
    result, sent = harness.offload(Frame(bytes(undone), offload), cuts=pages, max_frame=1518)
    assert result == 0
    assert [one.data for one in sent] == case.segments(1448)


def test_a_udp_checksum_is_never_0(harness: Harness) -> None:
    """0 would say that there is none."""
    case = Case(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=1), b"\0\0")
    missing = 0xFFFF - ones_complement(struct.pack("!H", case.pseudo_sum(10)) + bytes(case.whole()[34:40]) + b"\0\0")
    case.payload = struct.pack("!H", missing)
    for offload in (case.offload(), case.offload(2)):
        _, [sent] = harness.offload(Frame(bytes(case.undone()), offload))
        assert sent.data[40:42] == b"\xff\xff"


def test_a_full_receiver_ends_it(harness: Harness) -> None:
    """The rest of a frame is not tried once a segment was not taken."""
    case = Case(Ether() / IP() / TCP(), bytes(5000))
    frame = Frame(bytes(case.undone()), case.offload(1000))
    result, sent = harness.offload(frame, room=3, answer=FULL)
    assert (result, len(sent)) == (FULL, 3)
    assert harness.offload(frame, room=0, answer=-6) == (-6, [])


TCP4 = Case(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A"), bytes(3000))


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (12, b"\x08\x06", "not IP at all"),
        (12, b"\x86\xdd", "IPv6 by its type, not by its version"),
        (12, b"\x81\x00", "a tag where none is"),
        (14, b"\x44", "an IPv4 header of 16 bytes"),
        (14, b"\x65", "a version of 6"),
        (20, b"\x20\x00", "a fragment with more to come"),
        (20, b"\x00\x01", "a later fragment"),
        (23, b"\x11", "UDP"),
        (46, b"\x40", "a TCP header of 16 bytes"),
    ],
)
def test_headers_that_do_not_match(harness: Harness, offset: int, value: bytes, what: str) -> None:
    data = TCP4.undone()
    data[offset : offset + len(value)] = value
    assert harness.offload(Frame(bytes(data), TCP4.offload(1000))) == (UNFIT, []), what


@pytest.mark.parametrize(
    "offload",
    [
        Offload(NEEDS_CSUM, GSO_TCPV4, 0, 0, 34, 16),  # segments of nothing
        Offload(NEEDS_CSUM, GSO_TCPV4, 0, 2, 34, 16),  # 1500 of them
        Offload(NEEDS_CSUM, GSO_TCPV6, 0, 1000, 34, 16),
        Offload(NEEDS_CSUM, GSO_UDP_L4, 0, 1000, 34, 16),
        Offload(NEEDS_CSUM, 3, 0, 1000, 34, 16),  # datagrams to be fragmented
        Offload(NEEDS_CSUM, 77, 0, 1000, 34, 16),
        Offload(NEEDS_CSUM, GSO_NONE, 0, 0, 0, 12),  # the frame's type
        Offload(NEEDS_CSUM, GSO_NONE, 0, 0, 3040, 13),  # half outside
        Offload(NEEDS_CSUM, GSO_NONE, 0, 0, 65535, 65535),
    ],
)
def test_offloads_that_cannot_be(harness: Harness, offload: Offload) -> None:
    assert harness.offload(Frame(bytes(TCP4.undone()), offload)) == (UNFIT, [])


def test_a_chain_of_extension_headers_ends(harness: Harness) -> None:
    """More of them than are copied, and one that is longer than the frame."""
    headers = bytes(Ether() / IPv6(nh=0)) + bytes([0, 0, 1, 4, 0, 0, 0, 0]) * 400
    for data in (headers, bytes(Ether() / IPv6(nh=60)) + b"\x06\xff" + bytes(50), bytes(Ether() / IPv6(nh=60))):
        result = harness.offload(Frame(data, Offload(NEEDS_CSUM, GSO_TCPV6, 0, 100, 54, 16)))
        assert result == (UNFIT, [])


def test_segments_over_the_receivers_mtu(harness: Harness) -> None:
    frame = Frame(bytes(TCP4.undone()), TCP4.offload(1460))
    assert harness.offload(frame, max_frame=1513) == (OVERSIZE, [])
    assert harness.offload(frame, max_frame=1514)[0] == 0


@settings(max_examples=120 * MORE, deadline=None)
@given(data=st.data())
def test_spoiled_headers_give_frames_or_a_reason(harness: Harness, data: st.DataObject) -> None:
    """Bytes of the headers and the offload header replaced at random: what is sent are frames, or nothing is."""
    case = data.draw(cases(2000))
    frame = bytearray(case.undone())
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(12, min(len(frame), case.start + 20) - 1))] = data.draw(st.integers(0, 255))
    small = st.integers(0, 3000) | words
    offload = Offload(
        NEEDS_CSUM, data.draw(st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84])), *(data.draw(small) for _ in range(4))
    )
    frame = frame[: data.draw(st.integers(14, len(frame)))]
    assume(len(frame) >= 14)
    result, sent = harness.offload(Frame(bytes(frame), offload), cuts=data.draw(cuts(len(frame))), max_frame=1518)
    assert result in (0, UNFIT, OVERSIZE)
    assert (result == 0) == bool(sent)
    payload = sum(len(one.data) for one in sent)
    assert payload >= (len(frame) if result == 0 else 0)
    assert all(14 <= len(one.data) <= FRAME_MAX for one in sent)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fuzz") / "offload_fuzz"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compile_harness(HARNESS.with_name("offload_fuzz.c"), target, *sanitizers)
    return target


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_read_outside_a_frame(fuzzer: Path, seed: int) -> None:
    cases = 5000 * MORE
    done = subprocess.run(
        [str(fuzzer), str(seed), str(cases)], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    ran, finished, refused, sent = (int(word) for word in done.stdout.split() if word.isdigit())
    assert ran == cases
    assert finished > cases / 4
    assert refused > cases / 10
    assert sent > finished
