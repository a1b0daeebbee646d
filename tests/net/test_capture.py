"""Captures: what is seen of a switch's frames, and what tshark makes of it."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from switch_process import BROADCAST, LIMIT, SwitchProcess, frame, mac, own, shared, switch, until

import net
import shm
from net import requests
from net.capture import MANY, Capture, Captured
from net.client import Client
from net.errors import NetError
from net.pcapng import Writer
from net.port import HostPort, Offload

__all__ = ["own", "shared", "switch"]

ROOT = Path(__file__).parent.parent.parent
needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (apt: tshark)")


@pytest.fixture
def ends(switch: SwitchProcess) -> Iterator[tuple[HostPort, HostPort]]:
    with net.attach("c/lan", name="a") as a, net.attach("c/lan", name="b") as b:
        yield a, b


def take(capture: Capture, count: int) -> list[Captured]:
    found: list[Captured] = []
    while len(found) < count:
        more = capture.frames(LIMIT)
        assert more, f"{len(found)} of {count} frames came"
        found += more
    return found


def passed(switch: SwitchProcess, name: str, count: int) -> None:
    until(lambda: switch.port(name)["counters"]["frames_in"] >= count, "frames are not forwarded")


def test_what_is_seen(switch: SwitchProcess, ends: tuple[HostPort, HostPort]) -> None:
    a, b = ends
    before = time.time_ns()
    with Capture("c/lan") as capture:
        a.send(frame(BROADCAST, mac(1), b"to all"))
        b.recv(LIMIT)
        b.send(frame(mac(1), mac(2), bytes(1500)))
        a.recv(LIMIT)
        first, second = take(capture, 2)
        assert first.data == frame(BROADCAST, mac(1), b"to all")
        assert (capture.port(first.source), first.to, capture.port(first.to)) == ("a", MANY, "*")
        assert (capture.port(second.source), capture.port(second.to)) == ("b", "a")
        assert second.data == frame(mac(1), mac(2), bytes(1500))
        assert [(one.size, one.lost) for one in (first, second)] == [(20, 0), (1514, 0)]
        assert before <= first.time_ns <= second.time_ns <= time.time_ns()
        assert capture.frames(0) == []
        [known] = switch.show()["captures"]
        assert (known["frames"], known["bytes"], known["lost"], known["broken"]) == (2, 1534, 0, None)
    until(lambda: switch.show()["captures"] == [], "the capture goes on")
    a.send(frame(mac(2), mac(1)))
    assert b.recv(LIMIT)


def test_what_its_sender_left_undone(switch: SwitchProcess) -> None:
    offload = Offload(flags=1, csum_start=34, csum_offset=6)
    packet = bytes.fromhex("4500002100000000401100000a0000010a00000200350035000d0000") + b"hello"
    with net.attach("c/lan", name="a", offloads=True) as a, net.attach("c/lan", name="b"), Capture("c/lan") as capture:
        a.send(BROADCAST + mac(1) + b"\x08\x00" + packet, offload=offload)
        [seen] = take(capture, 1)
        assert Offload.unpack(seen.offload) == offload
        assert seen.data.endswith(packet)


FILTERS: list[tuple[dict[str, list[object]], Callable[[int, int | None], bool]]] = [
    ({}, lambda _source, _to: True),
    ({"ports": ["p0"]}, lambda source, to: source == 0 or to in (0, None)),
    ({"ports": ["p0", "p2"]}, lambda source, to: source in (0, 2) or to in (0, 2, None)),
    ({"macs": [mac(1)]}, lambda source, to: 1 in (source, to)),
    ({"macs": [mac(1), BROADCAST]}, lambda source, to: source == 1 or to in (1, None)),
    ({"ports": ["p0"], "macs": [mac(1)]}, lambda source, to: {source, to} in ({0, 1}, {1, None})),
    ({"macs": [mac(77)]}, lambda _source, _to: False),
]


def test_filters(switch: SwitchProcess) -> None:
    generator = random.Random(7)
    ports = [net.attach("c/lan", name=f"p{number}") for number in range(3)]
    captures = [Capture("c/lan", **wanted) for wanted, _ in FILTERS]  # type: ignore[arg-type]
    try:
        for number, port in enumerate(ports):
            port.send(frame(BROADCAST, mac(number)))
            passed(switch, f"p{number}", 1)
        sent: list[tuple[int, int | None]] = [(number, None) for number in range(3)]
        for _ in range(60):
            source, to = generator.sample([0, 1, 2], 2)
            way = (source, None if generator.random() < 0.3 else to)
            before = switch.port(f"p{source}")["counters"]["frames_in"]
            ports[source].send(frame(BROADCAST if way[1] is None else mac(to), mac(source), len(sent).to_bytes(2)))
            passed(switch, f"p{source}", before + 1)
            sent.append(way)
        for capture, (_, wants) in zip(captures, FILTERS, strict=True):
            wanted = [way for way in sent if wants(*way)]
            got = take(capture, len(wanted)) + capture.frames(0)
            seen = [(int(capture.port(one.source)[1]), capture.port(one.to)) for one in got]
            assert seen == [(source, "*" if to is None else f"p{to}") for source, to in wanted]
    finally:
        for one in [*captures, *ports]:
            one.close()


def test_a_port_is_looked_at_by_name_also_when_it_comes_again(switch: SwitchProcess) -> None:
    with net.attach("c/lan", name="a"):
        capture = Capture("c/lan", ports=["a"], macs=[mac(1)])
    with net.attach("c/lan", name="b") as b, capture:
        until(lambda: switch.ports() == ["b"], "it is still there")
        for number in range(3):
            with net.attach("c/lan", name="a") as a:
                a.send(frame(BROADCAST, mac(1), bytes([number])))
                [seen] = take(capture, 1)
                assert (seen.data[-1], capture.port(seen.source)) == (number, "a")
                assert b.recv(LIMIT)[-1] == number
            until(lambda: switch.ports() == ["b"], "it is still there")
            b.send(frame(mac(1), mac(2), b"to nobody"))
            passed(switch, "b", number + 1)
        assert capture.frames(0) == []
    with pytest.raises(NetError, match="network c/lan: capture: there is no port 'c' \\(there: a\\)"):
        with net.attach("c/lan", name="a"):
            Capture("c/lan", ports=["a", "c"])


def test_a_part_of_each(switch: SwitchProcess, ends: tuple[HostPort, HostPort]) -> None:
    a, _ = ends
    for snap in (1, 14, 15, 60):
        with Capture("c/lan", snap=snap) as capture:
            a.send(frame(BROADCAST, mac(1), bytes(range(200))))
            [seen] = take(capture, 1)
            assert seen.size == 214
            assert seen.data == frame(BROADCAST, mac(1), bytes(range(200)))[: max(snap, 14)]


def test_what_finds_no_room_is_counted_and_nobody_waits(switch: SwitchProcess, ends: tuple[HostPort, HostPort]) -> None:
    a, b = ends
    with Capture("c/lan", room=1 << 18) as capture:
        for _ in range(10):
            assert a.send_many([frame(BROADCAST, mac(1), bytes(1400))] * 50, timeout=LIMIT) == 50
            assert sum(len(b.recv_many(50, LIMIT)) for _ in range(1)) > 0
        passed(switch, "a", 500)
        lost = capture.lost_now()
        assert 0 < lost < 500
        kept = take(capture, 500 - lost)
        assert len(kept) == 500 - lost
        a.send(frame(BROADCAST, mac(1), b"the last"))
        [last] = take(capture, 1)
        assert (last.lost, capture.lost) == (lost, lost)
        assert last.data.endswith(b"the last")


def test_several_at_a_time(switch: SwitchProcess, ends: tuple[HostPort, HostPort]) -> None:
    a, _ = ends
    captures = [Capture("c/lan") for _ in range(8)]
    with pytest.raises(NetError, match="8 captures run already; end one"):
        Capture("c/lan")
    captures.pop(3).close()
    until(lambda: len(switch.show()["captures"]) == 7, "it goes on")
    captures.append(Capture("c/lan"))
    a.send(frame(BROADCAST, mac(1), b"x"))
    assert all(take(capture, 1)[0].data.endswith(b"x") for capture in captures)
    for capture in captures:
        capture.close()


def test_its_switch_ends(own: SwitchProcess) -> None:
    for end in (own.kill, own.end):
        with Capture("c/lan") as capture:
            end()
            with pytest.raises(NetError, match="network c/lan: its switch ended"):
                capture.frames(LIMIT)
        own.start()


# --- hostile readers -----------------------------------------------------------------------------------------------


def hostile(switch: SwitchProcess, spoil: Callable[[shm.Region], None], a: HostPort, count: int) -> dict[str, object]:
    """Capture, spoil the ring, send frames; return what the switch thinks of it."""
    ring = shm.ChannelSpec("frames", size=1 << 16, max_message=2000)
    with shm.Region.create("c/x", channels=[ring], backing="memfd", serve=False) as region:
        with Client.connect("c", "lan") as client:
            client.call(requests.capture(region, "frames"))
            spoil(region)
            before = switch.port("a")["counters"]["frames_in"]
            a.send_many([frame(BROADCAST, mac(1), bytes(1000))] * count, timeout=LIMIT)
            passed(switch, "a", before + count)
            [known] = switch.show()["captures"]
    found: dict[str, object] = known
    return found


def test_a_position_that_cannot_be(switch: SwitchProcess, ends: tuple[HostPort, HostPort]) -> None:
    def spoil(region: shm.Region) -> None:
        os.pwrite(region.fd, (1 << 40).to_bytes(8, "little"), region.channels["frames"].offset)

    known = hostile(switch, spoil, ends[0], 100)
    assert known["broken"] == "head"
    assert switch.process.poll() is None


def test_memory_that_is_cut_short(switch: SwitchProcess, ends: tuple[HostPort, HostPort]) -> None:
    known = hostile(switch, lambda region: os.ftruncate(region.fd, 4096), ends[0], 100)
    assert known["broken"] == "memory"
    assert switch.process.poll() is None
    assert not switch.port("a")["quarantined"]


def test_any_bytes_in_the_ring(switch: SwitchProcess, ends: tuple[HostPort, HostPort]) -> None:
    generator = random.Random(3)

    def spoil(region: shm.Region) -> None:
        info = region.channels["frames"]
        os.pwrite(region.fd, generator.randbytes(info.span), info.offset)

    for _ in range(20):
        hostile(switch, spoil, ends[0], 5)
    assert switch.process.poll() is None


def test_captures_that_cannot_be(switch: SwitchProcess) -> None:
    ring = shm.ChannelSpec("frames", size=1 << 16, max_message=2000)
    with shm.Region.create("c/x", channels=[ring], backing="memfd", serve=False) as region:
        good = requests.capture(region, "frames")
        null = os.open(os.devnull, os.O_RDWR)
        try:
            for changes, descriptors, sentence in (
                ({}, (), "0 descriptors came; it takes the memory of a ring"),
                ({}, (null,), "no region's memory"),
                ({}, (region.fd, region.fd), "2 descriptors came"),
                ({"ports": "a"}, (region.fd,), "ports is 'a'; it must be a list"),
                ({"ports": ["a"]}, (region.fd,), "there is no port 'a' (there: none)"),
                ({"macs": [b"\1"]}, (region.fd,), "macs is"),
                ({"macs": [mac(1)] * 65}, (region.fd,), "a list of at most 64 addresses"),
                ({"snap": -1}, (region.fd,), "snap is -1"),
                ({"channel": None}, (region.fd,), "channel is missing"),
                ({"channel": good.fields["channel"] | {"offset": 1 << 20}}, (region.fd,), "offset is wrong"),
                ({"channel": good.fields["channel"] | {"size": 1 << 20}}, (region.fd,), "size is wrong"),
                ({"channel": good.fields["channel"] | {"size": 5000}}, (region.fd,), "size is wrong"),
                ({"channel": good.fields["channel"] | {"max_message": 53}}, (region.fd,), "max_message is wrong"),
                ({"channel": good.fields["channel"] | {"kind": "broadcast"}}, (region.fd,), "(spsc)"),
            ):
                with pytest.raises(NetError) as raised:
                    switch.call(requests.Request(good.fields | changes, descriptors))
                assert sentence in str(raised.value)
        finally:
            os.close(null)
    assert switch.show()["captures"] == []


# --- files ---------------------------------------------------------------------------------------------------------


def tshark(file: Path, *fields: str) -> list[list[str]]:
    arguments = [argument for field in fields for argument in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", str(file), "-T", "fields", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert "malformed" not in done.stderr.lower()
    return [line.split("\t") for line in done.stdout.splitlines()]


@needs_tshark
@settings(max_examples=3, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=14, max_size=200), st.integers(0, 9)), max_size=60))
def test_a_file_of_any_frames(frames: list[tuple[int, bytes, int]]) -> None:
    written = io.BytesIO()
    writer = Writer(written, "hostd")
    now = time.time_ns()
    interfaces: dict[int, int] = {}
    for number, (port, data, dropped) in enumerate(frames):
        if port not in interfaces:
            interfaces[port] = writer.interface(f"port{port}", "", 0)
        writer.packet(interfaces[port], now + number, data, len(data) + dropped, dropped)
    for interface in interfaces.values():
        writer.statistics(interface, now, 1)
    done = subprocess.run(
        ["tshark", "-r", "-", "-T", "fields", "-e", "frame.interface_name", "-e", "frame.cap_len", "-e", "frame.len"],
        input=written.getvalue(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert lines == [[f"port{port}", str(len(data)), str(len(data) + dropped)] for port, data, dropped in frames]


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fuzz") / "capture_fuzz"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
    flags += ["-fsanitize=address,undefined", f"-I{ROOT / 'shm' / 'include'}", f"-I{ROOT / 'net' / 'src'}"]
    source = Path(__file__).parent / "fuzz" / "capture_fuzz.c"
    subprocess.run(["gcc", *flags, str(source), "-o", str(target)], check=True, timeout=100)
    return target


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_readers_that_write_what_they_like(fuzzer: Path, seed: int) -> None:
    cases = 100_000 if os.environ.get("HOSTD_LONG") else 2_000
    done = subprocess.run(
        [str(fuzzer), str(seed), str(cases)], capture_output=True, text=True, check=False, timeout=550
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{cases} cases, ")
