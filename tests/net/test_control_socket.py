"""Hostile clients of a switch's control socket: each gets a sentence or the end, and nobody else notices."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from switch_process import SwitchProcess, own, running, shared, switch, until

import shm
from net import naming, requests, server, wire
from net.client import Client, connect
from net.errors import NetError
from net.requests import Request
from shm.region import Region

__all__ = ["own", "shared", "switch"]

HEADER = struct.Struct("<I")
NAME = shm.ChannelSpec("out", size=65536, max_message=1530), shm.ChannelSpec("in", size=65536, max_message=1530)


@contextmanager
def stranger() -> Iterator[socket.socket]:
    """Connect, and take the hello."""
    with connect("c", "lan") as peer:
        assert wire.Incoming(wire.ANSWER_LIMIT).receive(peer)
        yield peer


@contextmanager
def ring_region(*specs: shm.ChannelSpec) -> Iterator[Region]:
    with shm.Region.create("c/net.lan.x", channels=specs or NAME, backing="memfd", serve=False) as region:
        yield region


def last_words(peer: socket.socket) -> str:
    """Return the one error that a peer gets before it is left."""
    incoming = wire.Incoming(wire.ANSWER_LIMIT)
    messages: list[wire.Received] = []
    with contextlib.suppress(ConnectionResetError):  # The switch had more to read.
        while (found := incoming.receive(peer)) is not None:
            messages += found
    [answer] = messages
    return str(answer.message["error"])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes is larger than the limit of 65536 bytes"),
        (HEADER.pack(65537), "a frame of 65537 bytes"),
        (HEADER.pack(0), "no valid msgpack"),
        (HEADER.pack(1) + b"\xc1", "no valid msgpack"),
        (HEADER.pack(1) + b"\x90", "no map with text keys"),
        (HEADER.pack(3) + b"\x81\x01\x02", "no valid msgpack"),
        (HEADER.pack(6) + b"\xdf\xff\xff\xff\xff\x01", "no valid msgpack"),
        (HEADER.pack(9000) + b"\x91" * 9000, "no valid msgpack"),
    ],
)
def test_what_is_no_frame(switch: SwitchProcess, data: bytes, sentence: str) -> None:
    with stranger() as peer:
        peer.sendall(data)
        assert sentence in last_words(peer)
    assert switch.show()["ports"] == []


def test_half_a_frame_and_silence_hold_up_nobody(switch: SwitchProcess) -> None:
    with stranger() as half, stranger() as silent:
        half.sendall(HEADER.pack(60000) + b"\x81")
        assert switch.show()["ports"] == []
        silent.close()
        half.sendall(bytes(100))
    assert switch.show()["ports"] == []


def test_a_frame_byte_by_byte_and_several_at_a_time(switch: SwitchProcess) -> None:
    one = wire.pack({"op": "show"})
    with stranger() as peer:
        for byte in one:
            peer.sendall(bytes([byte]))
        peer.sendall(one * 50)
        incoming, answers = wire.Incoming(wire.ANSWER_LIMIT), 0
        while answers < 51:
            messages = incoming.receive(peer)
            assert messages is not None
            answers += len(messages)
            assert all("ok" in received.message for received in messages)


def test_who_does_not_read_waits_for_himself_alone(switch: SwitchProcess) -> None:
    for number in range(8):
        switch.call(requests.add_vhost(f"g{number}"))
    with stranger() as peer:
        peer.settimeout(0.3)
        asked = wire.pack({"op": "show"}) * 100000
        with pytest.raises(TimeoutError):
            peer.sendall(asked)
        assert len(switch.ports()) == 8
        memory = resident(switch)
        with pytest.raises(TimeoutError):
            peer.sendall(asked)
        assert resident(switch) - memory < 1 << 20
    assert len(switch.ports()) == 8


def resident(switch: SwitchProcess) -> int:
    """Return the bytes of memory that its process has."""
    return int(Path(f"/proc/{switch.process.pid}/statm").read_text().split()[1]) * 4096


def test_too_many_connections(switch: SwitchProcess) -> None:
    opened = [Client.connect("c", "lan") for _ in range(server.CONNECTIONS - 1)]
    with pytest.raises(NetError, match="network c/lan: 64 connections are open already; close some"):
        Client.connect("c", "lan")
    assert switch.show()["ports"] == []
    for client in opened:
        client.close()
    until(_can_connect, "nobody gets in any more")


def _can_connect() -> bool:
    try:
        Client.connect("c", "lan").close()
    except NetError:
        return False
    return True


# --- descriptors ---------------------------------------------------------------------------------------------------


def descriptors_of(switch: SwitchProcess) -> int:
    return len(os.listdir(f"/proc/{switch.process.pid}/fd"))


def test_descriptors_that_nobody_wants_are_closed(switch: SwitchProcess) -> None:
    before = descriptors_of(switch)
    with stranger() as peer, open(os.devnull, "rb") as null:
        some = array.array("i", [null.fileno()] * wire.DESCRIPTORS)
        for data in (wire.pack({"op": "show"}), wire.pack({"op": "add_vhost", "name": "x"}), wire.pack({"op": "fly"})):
            peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, some)])
            [answer] = wire.Incoming(wire.ANSWER_LIMIT).receive(peer) or []
            assert "error" in answer.message
        peer.sendmsg([HEADER.pack(9)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, some)])
    until(lambda: descriptors_of(switch) == before, "descriptors are left")
    assert switch.ports() == []


@pytest.mark.parametrize("count", [wire.DESCRIPTORS + 1, 200])
def test_too_many_descriptors(switch: SwitchProcess, count: int) -> None:
    before = descriptors_of(switch)
    with stranger() as peer, open(os.devnull, "rb") as null:
        some = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * count))]
        one = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()]))]
        asked = wire.pack({"op": "show"})
        for _ in range(2):
            peer.sendmsg([asked], some)
            [answer] = wire.Incoming(wire.ANSWER_LIMIT).receive(peer) or []
            assert answer.message["error"].startswith("network c/lan: show: its descriptors did not all come")
        for byte in wire.pack({"op": "remove", "name": "nobody"}):
            peer.sendmsg([bytes([byte])], one)
        [answer] = wire.Incoming(wire.ANSWER_LIMIT).receive(peer) or []
        assert "did not all come" in answer.message["error"]
        peer.sendall(asked)
        [answer] = wire.Incoming(wire.ANSWER_LIMIT).receive(peer) or []
        assert answer.message["ok"]["ports"] == []
    until(lambda: descriptors_of(switch) == before, "descriptors are left")


# --- ring ports ----------------------------------------------------------------------------------------------------


def refused(switch: SwitchProcess, request: Request) -> str:
    before = descriptors_of(switch)
    with pytest.raises(NetError) as raised:
        switch.call(request)
    assert "\n" not in str(raised.value)
    until(lambda: descriptors_of(switch) == before, "descriptors are left")
    assert switch.ports() == []
    return str(raised.value)


def test_descriptors_that_are_no_ring_ports(switch: SwitchProcess) -> None:
    with ring_region() as region:
        good = requests.add_ring("x", region)
        memory, *bells = good.descriptors
        reading, writing = os.pipe()
        blocking = os.eventfd(0, os.EFD_CLOEXEC)
        empty = os.memfd_create("empty")
        readonly = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
        try:
            for descriptors, sentence in (
                ((), "0 descriptors came; it takes the region's memory and its bells"),
                ((memory,), "1 descriptors came"),
                ((memory, *bells, *bells), "9 descriptors came"),
                ((reading, *bells), "the first descriptor is no region's memory"),
                ((empty, *bells), "the first descriptor is no region's memory"),
                ((bells[0], *bells), "the first descriptor is no region's memory"),
                ((readonly, *bells), "can't be mapped"),
                ((memory, writing, *bells[1:]), "a descriptor is no bell (eventfd)"),
                ((memory, *bells[:3], blocking), "a bell blocks; make it with EFD_NONBLOCK"),
                ((memory, *bells[:3]), "a channel's bell is not among the 3 that came"),
            ):
                assert sentence in refused(switch, replace(good, descriptors=descriptors))
        finally:
            for descriptor in (reading, writing, blocking, empty, readonly):
                os.close(descriptor)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("kind", "mpsc", "have one sender and one receiver"),
        ("kind", 0, "kind is 0"),
        ("offset", 1 << 30, "x"),
        ("offset", 4097, "x"),
        ("offset", -1, "offset is -1"),
        ("size", 1 << 30, "x"),
        ("size", 3000, "x"),
        ("size", 1 << 60, "size is 1152921504606846976"),
        ("max_message", 1529, "at most 1529 bytes, but a frame of this network takes up to 1530"),
        ("max_message", 1 << 31, "x"),
        ("lanes", 2, "lanes is 2"),
        ("flags", -1, "flags is -1"),
        ("data_bell", 4, "data_bell is 4"),
        ("surprise", 1, "'surprise' is no field of it"),
    ],
)
@pytest.mark.parametrize("way", ["out", "in"])
def test_channels_that_cannot_be(switch: SwitchProcess, way: str, field: str, value: object, sentence: str) -> None:
    with ring_region() as region:
        good = requests.add_ring("x", region)
        bad = replace(good, fields=good.fields | {way: good.fields[way] | {field: value}})
        assert sentence in refused(switch, bad)


def test_names_and_options_that_cannot_be(switch: SwitchProcess) -> None:
    with ring_region() as region:
        good = requests.add_ring("x", region)
        for field, value in (
            ("name", "a/b"),
            ("name", ""),
            ("name", "x" * 64),
            ("name", "X"),
            ("name", ".x"),
            ("mac", b"\1\0\0\0\0\1"),
            ("mac", bytes(6)),
            ("mac", "02:00:00:00:00:01"),
            ("mac", b"\2\0\0"),
            ("rate", -1),
            ("rate", 1.5),
            ("uplink", 1),
            ("offloads", None),
            ("hold", "yes"),
            ("region", 7),
            ("out", None),
            ("in", []),
            ("extra", 1),
        ):
            assert refused(switch, replace(good, fields=good.fields | {field: value}))
        assert refused(switch, replace(good, fields={**good.fields, "op": "add_vhost"}))
    for name in ("nothere", "a" * 16, "x/y", "x\0y", ""):
        assert refused(switch, requests.add_packet("uplink", name))
    for name in ("lo", "a" * 16, "x/y", "x\0y", ""):
        assert refused(switch, requests.add_tap("uplink", name))
    assert "network namespace nothere" in refused(switch, requests.add_tap("uplink", "tap-x", netns="nothere"))
    assert "x" in refused(switch, requests.remove("x"))


def test_a_path_too_long_for_a_socket() -> None:
    with running(cluster="c" * 48, network="n" * 48) as switch:
        assert "is longer than a Unix socket's 107 bytes" in refused(switch, requests.add_vhost("p" * 60))


def test_memory_that_is_cut_short(switch: SwitchProcess) -> None:
    with ring_region() as region, ring_region() as other:
        switch.call(requests.add_ring("x", region))
        switch.call(requests.add_ring("y", other))
        os.ftruncate(region.fd, 0)
        with other.sender("out") as out:
            for number in range(20):
                out.send(bytes(12) + b"\xff" * 6 + b"\2\0\0\0\0\1" + bytes(60), timeout=1)
                until(lambda number=number: switch.port("y")["counters"]["frames_in"] > number, "it takes no frame")
        assert switch.process.poll() is None
        assert switch.port("x")["quarantined"]
        assert not switch.port("y")["quarantined"]


def test_ports_to_the_limit_of_descriptors(own: SwitchProcess) -> None:
    """With as few descriptors as can be, what fails is the one port, and it leaves nothing."""
    limit = descriptors_of(own) + 12
    resource.prlimit(own.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    with ring_region() as region:
        for number in range(10):
            try:
                own.call(requests.add_ring(f"p{number}", region))
            except NetError:
                break
        else:
            pytest.fail("ten ports fit")
        for name in own.ports():
            own.call(requests.remove(name))
        own.call(requests.add_ring("again", region))


# --- anything ------------------------------------------------------------------------------------------------------

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def _no_text(value: object) -> bool:
    """An interface of any name would be made."""
    return not isinstance(value, str)


OPS = ["show", "add_ring", "add_vhost", "add_tap", "add_packet", "remove", "capture", "x"]
KEYS = ["name", "mac", "uplink", "isolated", "rate", "offloads", "hold", "interface", "netns", "region", "out"]
KEYS += ["in", "channel", "ports", "macs", "snap", "attached"]
optional = dict.fromkeys(KEYS, values) | {"interface": values.map(lambda value: f"{value}/") | plain.filter(_no_text)}
fields = st.fixed_dictionaries({"op": st.sampled_from(OPS) | values}, optional=optional)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=fields)
def test_any_request_has_an_answer(shared: SwitchProcess, request: dict[str, Any]) -> None:
    try:
        shared.call(Request(request))
    except NetError as error:
        text = str(error)
        assert text.startswith(("network c/lan", "port ", "'")) or "no name of a port" in text, text
        assert "\n" not in text.strip()
        assert len(text) < 1000
    else:
        assert request["op"] in OPS
    for name in shared.ports():
        shared.call(requests.remove(name))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | fields.map(msgpack.packb).map(lambda body: HEADER.pack(len(body)) + body[:-1]))
def test_any_bytes(shared: SwitchProcess, data: bytes) -> None:
    with stranger() as peer:
        peer.sendall(data)
    assert shared.show()["ports"] == []


def test_where_its_sockets_are(switch: SwitchProcess) -> None:
    folder = naming.folder("c", "lan")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {entry.name for entry in folder.iterdir()} == {"control", "attached"}
