"""What a switch does with frames: where they go, what it learns, what it refuses."""

from __future__ import annotations

import os
import resource
import threading
import time
import zlib
from collections.abc import Iterator
from random import Random

import pytest
from ring_lan import BROADCAST, LIMIT, PLAIN, TYPE, Lan, Owner, frame, mac, wait_until
from ring_lan import lan as make_lan

import shm
from net.errors import NetError
from net.switch import Switch

A, B, C = mac(1), mac(2), mac(3)
SOAK = 60.0 if "HOSTD_LONG" in os.environ else 2.0


@pytest.fixture
def lan() -> Iterator[Lan]:
    yield from make_lan()


def test_frames_go_where_their_address_was_heard(lan: Lan) -> None:
    a, b, c = (lan.owner(name) for name in "abc")
    a.send(frame(B, A, b"who is b?"))  # Nobody knows: to all.
    assert b.recv() == c.recv() == frame(B, A, b"who is b?")
    b.send(frame(A, B, b"I am"))
    assert a.recv() == frame(A, B, b"I am")
    a.send(frame(B, A, b"now to you alone"))
    assert b.recv() == frame(B, A, b"now to you alone")
    assert c.nothing()
    assert a.nothing()
    known = {address.mac: address.port for address in lan.switch.addresses()}
    assert known == {A: a.info.id, B: b.info.id}


@pytest.mark.parametrize("group", [BROADCAST, b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\0\0\0\1"])
def test_groups_reach_all_but_the_sender(lan: Lan, group: bytes) -> None:
    a, b, c = (lan.owner(name) for name in "abc")
    a.send(frame(group, A, b"all"))
    assert b.recv() == c.recv() == frame(group, A, b"all")
    assert a.nothing()


def test_an_address_moves_with_who_sends_from_it(lan: Lan) -> None:
    a, b, c = (lan.owner(name) for name in "abc")
    for owner, other in ((b, c), (c, b)):
        owner.send(frame(BROADCAST, B))
        assert a.recv() == frame(BROADCAST, B)
        assert other.recv() == frame(BROADCAST, B)
        a.send(frame(B, A, b"to whom?"))
        assert owner.recv() == frame(B, A, b"to whom?")
        assert other.nothing()


def test_a_group_s_address_is_never_learnt(lan: Lan) -> None:
    a, b, _ = (lan.owner(name) for name in "abc")
    a.send(frame(BROADCAST, b"\x01\0\0\0\0\7"))
    b.recv()
    assert lan.switch.addresses() == []


def test_addresses_age() -> None:
    for lan in make_lan(age=1):
        a, b, c = (lan.owner(name) for name in "abc")
        b.send(frame(BROADCAST, B))
        assert a.recv() == c.recv() == frame(BROADCAST, B)
        a.send(frame(B, A))
        assert b.recv() == frame(B, A)
        assert c.nothing()
        time.sleep(1.1)
        assert lan.switch.addresses() == []
        a.send(frame(B, A, b"again to all"))
        assert b.recv() == c.recv() == frame(B, A, b"again to all")


def test_ever_new_addresses_do_not_fill_the_table() -> None:
    for lan in make_lan(addresses=64):
        a, b = lan.owner("a"), lan.owner("b", mac=B)
        for number in range(2000):
            a.send(frame(B, mac(1000 + number)))
            b.recv()
        known = {address.mac for address in lan.switch.addresses()}
        assert B in known
        assert 8 <= len(known - {B}) <= 64


def test_the_ports_own_addresses_stay_however_many_there_are() -> None:
    for lan in make_lan(addresses=8):
        owners = {number: lan.owner(f"p{number}", mac=mac(number), size=4096, message=256) for number in range(1, 65)}
        stranger = lan.owner("stranger")
        for gone in range(2, 65, 3):
            lan.switch.remove(f"p{gone}")
            del owners[gone]
        for number in range(200):
            stranger.send(frame(mac(1), mac(1000 + number)))
            owners[1].recv()
        for number, owner in owners.items():
            stranger.send(frame(mac(number), mac(999), b"to you"))
            assert owner.recv() == frame(mac(number), mac(999), b"to you")
            stranger.send(frame(mac(1), mac(number), b"I am you"))
        known = {address.mac for address in lan.switch.addresses()}
        assert {mac(number) for number in owners} <= known
        assert not {mac(number) for number in range(1, 65)} - {mac(number) for number in owners} & known
        stranger.send(frame(mac(1), mac(999), b"the last"))
        assert owners[1].recv() == frame(mac(1), mac(999), b"the last")
        assert stranger.info.counters.drops["spoofed"] == len(owners)
        assert all(owner.nothing() for owner in owners.values())


def test_vlans_have_addresses_of_their_own(lan: Lan) -> None:
    a, b, c = (lan.owner(name) for name in "abc")
    tagged = b"\x81\0\0\5"
    b.send(frame(BROADCAST, B, TYPE, tagged))
    assert a.recv() == c.recv()
    a.send(frame(B, A, TYPE, tagged))
    assert b.recv() == frame(B, A, TYPE, tagged)
    assert c.nothing()
    a.send(frame(B, A, b"untagged"))
    assert b.recv() == c.recv() == frame(B, A, b"untagged")
    assert {(address.mac, address.vlan) for address in lan.switch.addresses()} == {(A, 0), (A, 5), (B, 5)}


def test_a_port_with_an_address_of_its_own_sends_from_no_other(lan: Lan) -> None:
    a, b, c = lan.owner("a", mac=A), lan.owner("b"), lan.owner("c")
    b.send(frame(A, B, b"known without having sent"))
    assert a.recv() == frame(A, B, b"known without having sent")
    assert c.nothing()
    a.send(frame(B, C, b"I am c"))
    a.send(frame(B, A, b"I am a"))
    assert b.recv() == frame(B, A, b"I am a")
    assert a.info.counters.drops["spoofed"] == 1
    c.send(frame(B, A, b"I am a"))  # Nor does another port send from it,
    c.send(frame(B, A, TYPE, b"\x81\0\0\7"))  # in any VLAN.
    c.send(frame(B, C, b"I am c"))
    assert b.recv() == frame(B, C, b"I am c")
    assert c.info.counters.drops["spoofed"] == 2


def test_isolated_ports_reach_uplinks_only(lan: Lan) -> None:
    a, b = lan.owner("a", isolated=True), lan.owner("b", isolated=True)
    c, up = lan.owner("c"), lan.owner("up", uplink=True)
    a.send(frame(BROADCAST, A))
    assert up.recv() == frame(BROADCAST, A)
    c.send(frame(BROADCAST, C))
    assert up.recv() == frame(BROADCAST, C)
    up.send(frame(BROADCAST, mac(9)))
    assert a.recv() == b.recv() == c.recv() == frame(BROADCAST, mac(9))
    b.send(frame(A, B))
    c.send(frame(A, C))
    wait_until(lambda: b.info.counters.drops["isolated"] == c.info.counters.drops["isolated"] == 1)
    a.send(frame(mac(9), A, b"out"))
    assert up.recv() == frame(mac(9), A, b"out")
    assert a.nothing()


def test_a_rate_is_kept(lan: Lan) -> None:
    a, b = lan.owner("a", rate=1_000_000), lan.owner("b", mac=B, size=1 << 20)
    burst = 2 * (65535 + 18)
    start, sent = time.monotonic(), 0
    while time.monotonic() - start < 0.5:
        a.send(frame(B, A, bytes(986)))
        sent += 1
    wait_until(lambda: a.info.counters.frames_in == sent)
    took = time.monotonic() - start
    info, arrived = a.info, b.info.counters.bytes_out
    assert arrived <= burst + took * 1_000_000
    assert arrived >= min(sent * 1000, 400_000) - 1000
    full = b.info.counters.drops["full"]
    assert info.counters.drops["rate"] + arrived // 1000 + full == sent


def test_runts_and_frames_that_are_too_long_are_counted() -> None:
    for lan in make_lan(mtu=1000):
        a, b = lan.owner("a"), lan.owner("b", mac=B)
        a.sender.send(b"short", timeout=LIMIT)
        a.sender.send(bytes(12) + bytes(13), timeout=LIMIT)
        a.send(frame(B, A, bytes(1005)))
        a.send(frame(B, A, bytes(1004)))  # As much as a VLAN tag and the MTU take.
        assert len(b.recv()) == 1018
        drops = a.info.counters.drops
        assert (drops["runt"], drops["oversize"]) == (2, 1)


def test_offloads_that_can_not_be_are_counted(lan: Lan) -> None:
    a, b = lan.owner("a"), lan.owner("b", mac=B)
    for bad in (
        b"\1\0\0\0\0\0" + (60).to_bytes(2, "little") + (60).to_bytes(2, "little") + b"\0\0",  # a sum past the end
        b"\0\7" + bytes(10),  # segmentation that nobody knows
        b"\1\1\0\0\0\0" + (34).to_bytes(2, "little") + (16).to_bytes(2, "little") + b"\0\0",  # segments of 0 bytes
    ):
        a.send(frame(B, A, bytes(80)), offload=bad)
    a.send(frame(B, A, b"plain"))
    assert b.recv() == frame(B, A, b"plain")
    assert a.info.counters.drops["offload"] == 3


def test_what_only_a_receiver_may_say_is_cleared(lan: Lan) -> None:
    a, b = lan.owner("a"), lan.owner("b", mac=B)
    a.send(frame(B, A, bytes(80)), offload=b"\6\0" + b"\x11" * 10)  # Its checksum is right, says a.
    assert b.receiver.recv(timeout=LIMIT) == PLAIN + frame(B, A, bytes(80))


def test_segments_longer_than_the_network_allows(lan: Lan) -> None:
    """Also to a port that takes what is unsegmented."""
    a, b = lan.owner("a", size=1 << 18, message=65565), lan.owner("b", mac=B, size=1 << 18, message=65565)
    for size in (1460 + 5, 1460 + 4):
        numbers = (0, size, 34, 16)  # As a TCP over IPv4 without options.
        a.send(frame(B, A, bytes(5000)), offload=b"\1\1" + b"".join(n.to_bytes(2, "little") for n in numbers) + b"\0\0")
    assert b.receiver.recv(timeout=LIMIT)[4:6] == (1464).to_bytes(2, "little")
    assert a.info.counters.drops["oversize"] == 1


def test_a_full_ring_loses_frames_and_nobody_waits(lan: Lan) -> None:
    a, b, c = lan.owner("a"), lan.owner("b", mac=B, size=4096, message=1024), lan.owner("c", mac=C)
    for _ in range(200):
        a.send(frame(B, A, bytes(500)))
    a.send(frame(C, A, b"goes on"))
    assert c.recv() == frame(C, A, b"goes on")
    counted = b.info.counters
    assert counted.drops["full"] > 100
    assert counted.drops["full"] + counted.frames_out == 200


@pytest.mark.parametrize("what", ["length", "head"])
def test_a_port_that_spoils_its_ring_is_quarantined_and_the_others_go_on(lan: Lan, what: str) -> None:
    a, b, bad = (lan.owner(name) for name in ("a", "b", "bad"))
    bad.send(frame(BROADCAST, C))
    a.recv(), b.recv()
    view = memoryview(bad.region._map)
    out, into = bad.region.channels["out"].offset, bad.region.channels["in"].offset
    if what == "length":
        bad.sender.send(bytes(100), timeout=LIMIT)
        wait_until(lambda: bad.info.counters.frames_in == 2)
        cells = out + 512
        for cell in range(cells, cells + 1024, 64):  # Each sequence that may be due next, with a length that can't be.
            view[cell : cell + 8] = ((cell - cells) // 64 + 1).to_bytes(4, "little") + (1 << 30).to_bytes(4, "little")
    else:
        view[into : into + 8] = (1 << 40).to_bytes(8, "little")
        for _ in range(400):
            a.send(frame(C, A, bytes(1000)))
    wait_until(lambda: bad.info.quarantined)
    assert bad.info.quarantined == "ring"
    assert bad.info.field == what
    a.send(frame(BROADCAST, A, b"unharmed"))
    while b.recv() != frame(BROADCAST, A, b"unharmed"):
        pass


def test_memory_that_is_taken_away_ends_its_port_alone(lan: Lan) -> None:
    a, b, bad = (lan.owner(name) for name in ("a", "b", "bad"))
    os.ftruncate(bad.region.fd, 0)
    a.send(frame(BROADCAST, A, b"to all"))
    assert b.recv() == frame(BROADCAST, A, b"to all")
    wait_until(lambda: bad.info.quarantined)
    assert bad.info.quarantined == "memory gone"
    a.send(frame(BROADCAST, A, b"and again"))
    assert b.recv() == frame(BROADCAST, A, b"and again")
    lan.switch.remove("bad")


def test_ports_of_one_region_are_quarantined_each_for_itself(lan: Lan) -> None:
    """Pages beyond a shortened file's end are those of one port; the others' are still there."""
    ways = ("good.out", "good.in", "bad.out", "bad.in")
    channels = [shm.ChannelSpec(way, size=1 << 16, max_message=2048) for way in ways]
    with shm.Region.create(f"lan{os.getpid()}/shared-{id(lan):x}", channels=channels) as region:
        for name in ("bad", "good"):
            lan.switch.add_ring(name, region, out=f"{name}.out", into=f"{name}.in")
        a = lan.owner("a")
        os.ftruncate(region.fd, region.channels["bad.out"].offset)
        a.send(frame(BROADCAST, A, b"to all"))
        wait_until(lambda: lan.info("bad").quarantined)
        assert region.receiver("good.in").recv(timeout=LIMIT)[len(PLAIN) :] == frame(BROADCAST, A, b"to all")
        assert lan.info("good").quarantined is None
        lan.switch.remove("bad")
        os.ftruncate(region.fd, 0)
        a.send(frame(BROADCAST, A, b"again"))
        wait_until(lambda: lan.info("good").quarantined)
        assert lan.info("good").quarantined == "memory gone"
        lan.switch.remove("good")


def test_an_idle_switch_costs_nothing_and_wakes_up() -> None:
    for lan in make_lan(spin=20):
        a, b = lan.owner("a"), lan.owner("b")
        a.send(frame(BROADCAST, A))
        b.recv()
        time.sleep(0.05)
        before = resource.getrusage(resource.RUSAGE_SELF)
        time.sleep(1.0)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.1
        for number in range(100):
            time.sleep(0.001)
            a.send(frame(BROADCAST, A, number.to_bytes(2, "big")))
            assert b.recv() == frame(BROADCAST, A, number.to_bytes(2, "big"))
        assert b.info.counters.frames_out == 101


def test_bad_names_and_options(lan: Lan) -> None:
    lan.owner("a", mac=A)
    for name, options, sentence in (
        ("b", {"mac": A}, f"port b: {A.hex(':')} is the address of port a already; give another one"),
        ("a", {}, "port a: there is one already"),
        ("", {}, "a port's name has 1 to 63 bytes"),
        ("x" * 64, {}, "a port's name has 1 to 63 bytes"),
        ("b", {"mac": b"\1" + bytes(5)}, "port b: 01:00:00:00:00:00 is no address that an interface can have"),
    ):
        with pytest.raises(NetError, match=sentence):
            lan.owner(name, **options)
    assert [port.name for port in lan.switch.ports()] == ["a"]
    with pytest.raises(NetError, match="there is no port nobody"):
        lan.switch.remove("nobody")
    with pytest.raises(NetError, match="an MTU of 70000 bytes is not between 68 and 65535"):
        Switch(mtu=70000)
    lan.switch.close()
    with pytest.raises(NetError, match="the switch is closed"):
        lan.switch.ports()


def checked(to: int, sender: int, number: int, rng: Random) -> bytes:
    """A frame that says where it is to go, with a sum over all of it."""
    text = bytes([to, sender]) + number.to_bytes(4, "big") + rng.randbytes(rng.randrange(1400))
    return frame(mac(to), mac(sender), text + zlib.crc32(text).to_bytes(4, "big"))


def test_ports_come_and_go_under_traffic_and_no_frame_is_spoilt_or_misled(lan: Lan) -> None:
    """Of six ports four come and go; to the two that stay nothing may come that is not for them."""
    stop = threading.Event()
    failures: list[str] = []
    counts = dict.fromkeys(range(1, 7), 0)
    staying = {number: lan.owner(f"p{number}", mac=mac(number)) for number in (5, 6)}

    def talk(number: int) -> None:
        rng = Random(number)
        try:
            while not stop.is_set():
                owner = staying.get(number) or lan.owner(f"p{number}", mac=mac(number))
                while not stop.is_set() and (number in staying or rng.randrange(300)):
                    to = rng.randrange(1, 7)
                    if to != number:
                        owner.send(checked(to, number, counts[number], rng))
                    counts[number] += look(number, owner)
                if number not in staying:
                    lan.leave(owner)
        except Exception as error:
            failures.append(f"{number}: {error!r}")
            stop.set()

    def look(number: int, owner: Owner) -> int:
        try:
            data = owner.recv(timeout=0)
        except shm.ChannelTimeout:
            return 0
        text, total = data[14:-4], data[-4:]
        assert zlib.crc32(text).to_bytes(4, "big") == total, "a frame is spoilt"
        assert (mac(text[0]), mac(text[1])) == (data[:6], data[6:12]), "the header of another frame"
        # What is for a port that is away goes to all.
        assert text[0] == number or text[0] not in staying, "a frame is misled"
        return 1

    threads = [threading.Thread(target=talk, args=(number,)) for number in counts]
    for thread in threads:
        thread.start()
    stop.wait(SOAK)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(counts.values()) > 10
    assert all(port.quarantined is None for port in lan.switch.ports())
    assert {port.name for port in lan.switch.ports()} == {"p5", "p6"}
