"""Uplinks of a real switch: TCP through tap and packet ports, whole and segmented, NAT, an interface that is lost."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface

import pytest
from netns import Namespace, index_of, namespaces, needs_root, remove, up, veth
from pyroute2 import IPRoute

from net.errors import NetError
from net.switch import PortInfo, Switch
from net.uplink import UplinkPlan, set_up, take_down

pytestmark = needs_root
SERVER, OUT, GATEWAY = "192.0.2.1", "192.0.2.2", "10.9.0.1"
MEGABYTES = 4
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23


@dataclass
class Guest:
    """A namespace that is a guest, and that in which its wire's other end is a port of the switch."""

    inside: Namespace
    wire: Namespace
    address: str


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace that is the host; the test is in there."""
    with namespaces(1) as [made], made.entered():
        yield made


@pytest.fixture
def switch() -> Iterator[Switch]:
    with Switch() as made:
        made.start()
        yield made


@contextlib.contextmanager
def guest(switch: Switch, address: str, **options: bool) -> Iterator[Guest]:
    """Join a guest to the switch, by a port that has the address's name."""
    with namespaces(2) as [inside, wire]:
        with wire.entered():
            veth("wire", "eth0", inside)
            up("wire")
            switch.add_packet(address, "wire", **options)
        with inside.entered():
            up("eth0", f"{address}/24")
            with IPRoute() as routes:
                routes.route("add", dst="default", gateway=GATEWAY)
        yield Guest(inside, wire, address)


def bound(namespace: Namespace, address: str) -> socket.socket:
    with namespace.entered():
        made = socket.socket()
    made.settimeout(10)
    made.bind((address, 0))
    made.listen()
    return made


def transfer(client: Namespace, server: Namespace, to: str) -> str:
    """Send some megabytes each way; return who the server thought it was."""
    data = os.urandom(1 << 20) * MEGABYTES
    with bound(server, to) as listener, client.entered(), socket.create_connection(listener.getsockname(), 10) as one:
        other, peer = listener.accept()
        with other:
            for source, target in ((one, other), (other, one)):
                target.settimeout(10)
                sender = threading.Thread(target=source.sendall, args=(data,))
                sender.start()
                got = bytearray()
                while len(got) < len(data) and (part := target.recv(1 << 20)):
                    got += part
                sender.join()
                assert got == data
    return str(peer[0])


@contextlib.contextmanager
def longest_frame(namespace: Namespace, interface: str) -> Iterator[list[int]]:
    """Find out how long the longest frame is that comes to an interface."""
    longest = [0]
    with namespace.entered():
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sniffer.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sniffer.bind((interface, 3))
    sniffer.settimeout(0.05)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                longest[0] = max(longest[0], len(sniffer.recv(70000)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield longest
    finally:
        stop.set()
        thread.join()
        sniffer.close()


def port(switch: Switch, name: str) -> PortInfo:
    return next(info for info in switch.ports() if info.name == name)


@contextlib.contextmanager
def uplink(switch: Switch, network: str, **plan: object) -> Iterator[None]:
    """Give the switch a tap in the namespace that the test is in."""
    switch.add_tap("uplink", "tap0", uplink=True)
    set_up(UplinkPlan(network, "tap", "tap0", address=IPv4Interface(f"{GATEWAY}/24"), **plan))  # type: ignore[arg-type]
    try:
        yield
    finally:
        take_down(network)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
    return f"uplinktest-{os.getpid()}/switch"


def test_host_and_guest(switch: Switch, host: Namespace, network: str) -> None:
    """TCP passes unsegmented both ways, between a tap and a packet socket."""
    with uplink(switch, network), guest(switch, "10.9.0.2") as one, longest_frame(one.inside, "eth0") as longest:
        assert transfer(one.inside, host, GATEWAY) == "10.9.0.2"
        assert transfer(host, one.inside, "10.9.0.2") == GATEWAY
    assert longest[0] > 10_000
    assert switch.ports() != []
    counters = port(switch, "uplink").counters
    assert min(counters.bytes_in, counters.bytes_out) > 2 * MEGABYTES << 20
    assert counters.bytes_out / counters.frames_out > 1514
    assert counters.missed == 0


def test_a_port_that_takes_nothing_gets_segments(switch: Switch, host: Namespace, network: str) -> None:
    """Its guest gets what a wire would carry, with all checksums, and the bytes are the same."""
    with (
        uplink(switch, network),
        guest(switch, "10.9.0.2", offloads=False) as plain,
        guest(switch, "10.9.0.3") as able,
        longest_frame(plain.inside, "eth0") as longest,
    ):
        assert transfer(plain.inside, host, GATEWAY) == "10.9.0.2"
        assert transfer(able.inside, plain.inside, "10.9.0.2") == "10.9.0.3"
    assert longest[0] == 1514
    assert port(switch, "10.9.0.2").counters.drops["unfit"] == 0


def test_nat_lets_guests_out_to_a_server(switch: Switch, host: Namespace, network: str) -> None:
    with namespaces(1) as [outside]:
        veth("out", "in", outside)
        up("out", f"{OUT}/24")
        with outside.entered():
            up("in", f"{SERVER}/24")
        with uplink(switch, network, nat=True, way_out="out"), guest(switch, "10.9.0.2") as one:
            assert transfer(one.inside, outside, SERVER) == OUT


def test_isolated_ports_reach_the_uplink(switch: Switch, host: Namespace, network: str) -> None:
    with (
        uplink(switch, network),
        guest(switch, "10.9.0.2", isolated=True) as one,
        guest(switch, "10.9.0.3", isolated=True) as two,
    ):
        assert transfer(one.inside, host, GATEWAY) == "10.9.0.2"
        with bound(two.inside, "10.9.0.3") as listener, one.inside.entered(), pytest.raises(OSError, match="timed out"):
            socket.create_connection(listener.getsockname(), 0.1)


@pytest.mark.parametrize("kind", ["tap", "packet"])
def test_an_interface_removed_under_its_port(switch: Switch, host: Namespace, network: str, kind: str) -> None:
    """The port is quarantined, sleeping switch or not; the others go on."""
    with guest(switch, "10.9.0.2") as one, guest(switch, "10.9.0.3") as two:
        if kind == "tap":
            switch.add_tap("lost", "lost0", uplink=True)
            up("lost0")
        else:
            veth("lost0", "other0")
            up("lost0")
            switch.add_packet("lost", "lost0", uplink=True)
        assert port(switch, "lost").up
        remove("lost0")
        deadline = time.monotonic() + 5
        while port(switch, "lost").quarantined is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (port(switch, "lost").quarantined, port(switch, "lost").field) == ("device", "interface")
        assert transfer(one.inside, two.inside, "10.9.0.3") == "10.9.0.2"
        switch.remove("lost")


def test_an_idle_switch_sleeps(switch: Switch, host: Namespace, network: str) -> None:
    with uplink(switch, network), guest(switch, "10.9.0.2"):
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1


def test_interfaces_that_cannot_be_ports(switch: Switch, host: Namespace) -> None:
    with pytest.raises(NetError, match="no interface nothing0 here"):
        switch.add_packet("uplink", "nothing0")
    switch.add_tap("uplink", "tap0")
    with pytest.raises(NetError, match="tap0 already"):
        switch.add_tap("again", "tap0")
    assert index_of("tap0")
    switch.remove("uplink")
    with pytest.raises(OSError, match="no interface"):
        index_of("tap0")
