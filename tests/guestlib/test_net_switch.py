"""Unikernels on a real switch: with each other, with a process of the host, while switches come and go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lan import GUEST, GUEST_MAC, PEER, PEER_MAC, Lan, Network, Peer, Wire  # type: ignore[import-not-found]

from net.switch import Switch

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import IP, UDP  # noqa: E402
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "udp.c"
HOST, HOST_MAC = "10.7.0.9", "02:00:00:00:00:99"
NEEDS_CHECKSUM, USO = 1, 5
UDP_START, UDP_CHECKSUM = 34, 6


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@pytest.fixture
def switch() -> Iterator[Switch]:
    """A switch that forwards."""
    with Switch(mtu=1500) as made:
        made.start()
        yield made


class Two:
    """The example's two guests, and a wire for each."""

    def __init__(self, lan: Lan, rounds: int, size: int, how: str) -> None:
        self.wires = {"a": (lan.wire(), GUEST_MAC), "b": (lan.wire(), PEER_MAC)}
        self._start = lambda: (
            lan.guest(
                EXAMPLE,
                Network(self.wires["b"][0], mac=PEER_MAC, address=PEER, names={"a": GUEST}),
                name="b",
                args=["pong", how],
            ),
            lan.guest(
                EXAMPLE,
                Network(self.wires["a"][0], names={"b": PEER}),
                args=["ping", "b", str(rounds), str(size), how],
            ),
        )

    def plug(self, switch: Switch) -> None:
        for name, (wire, address) in self.wires.items():
            switch.add_ring(name, wire.region, mac=mac(address))

    def start(self) -> None:
        self.b, self.a = self._start()


@pytest.mark.parametrize(("rounds", "size", "how"), [(1000, 64, ""), (200, 1472, "sleep")], ids=["small", "asleep"])
def test_guests_find_each_other_by_name(lan: Lan, switch: Switch, rounds: int, size: int, how: str) -> None:
    two = Two(lan, rounds, size, how)
    two.plug(switch)
    two.start()
    found = two.a.join()
    assert (found["rounds"], found["size"], found["lost"]) == (rounds, size, 0)
    assert two.b.join()["answered"] >= rounds
    assert {port.quarantined for port in switch.ports()} == {None}
    assert all(not any(port.counters.drops.values()) for port in switch.ports())


def test_guests_go_on_with_the_next_switch(lan: Lan, until: Callable[[Callable[[], object]], None]) -> None:
    """What was under way is lost, as the example counts; nobody fails."""
    two = Two(lan, 3000, 64, "sleep")
    two.start()
    for _ in range(3):
        with Switch(mtu=1500) as switch:
            two.plug(switch)
            switch.start()
            until(lambda switch=switch: switch.ports()[0].counters.frames_in > 20 or not two.a.running)
    with Switch(mtu=1500) as switch:
        two.plug(switch)
        switch.start()
        assert two.a.join()["rounds"] == 3000
        two.b.join()


@pytest.fixture
def host(lan: Lan, switch: Switch) -> Iterator[Peer]:
    """A process of the host that takes no offloads."""
    wire: Wire = lan.wire(mtu=65535)
    switch.add_ring("host", wire.region, offloads=False)
    peer = Peer(wire.crossed())
    yield peer
    peer.close()


def echo(lan: Lan, switch: Switch) -> None:
    wire = lan.wire()
    switch.add_ring("guest", wire.region, mac=mac(GUEST_MAC))
    lan.guest(
        """
        int main(void) {
            static char data[2000];
            struct udp_socket *socket = udp_must_open(net_must_open(NULL), 7);
            struct udp_peer from;
            for (;;) {
                int64_t size = udp_receive_from(socket, data, sizeof data, &from, GUEST_NO_LIMIT);
                net_must("receive", size);
                net_must("send", udp_send_to(socket, from.address, from.port, data, (size_t)size, GUEST_NO_LIMIT));
            }
        }
        """,
        Network(wire),
    )


def answers(host: Peer, count: int) -> list[bytes]:
    """Return what comes back, whole, while the guest is told where the host is."""
    found = []
    while len(found) < count:
        data, offload = host.receive()
        frame = Ether(data)
        if ARP in frame and frame[ARP].pdst == HOST:
            reply = ARP(op=2, hwsrc=HOST_MAC, psrc=HOST, hwdst=GUEST_MAC, pdst=GUEST)
            host.send(bytes(Ether(src=HOST_MAC, dst=GUEST_MAC) / reply))
        elif UDP in frame:
            assert not any(offload[:2])
            again = frame.copy()
            del again[UDP].chksum
            assert Ether(bytes(again)) == frame, "a checksum that nobody finished"
            found.append(frame[Raw].load)
    return found


def datagram(data: bytes) -> bytes:
    headers = Ether(src=HOST_MAC, dst=GUEST_MAC) / IP(src=HOST, dst=GUEST)
    return bytes(headers / UDP(sport=9, dport=7) / Raw(data))


def test_a_checksum_left_undone_is_done_for_who_needs_it(lan: Lan, switch: Switch, host: Peer) -> None:
    echo(lan, switch)
    for data in (b"one", b"and another", bytes(1472)):
        host.send(datagram(data))
        assert answers(host, 1) == [data]


def test_a_frame_of_many_datagrams_reaches_a_guest_with_short_frames(lan: Lan, switch: Switch, host: Peer) -> None:
    """The switch makes them: the guest's rings have no room for a frame that long."""
    echo(lan, switch)
    data = bytes(range(256)) * 20
    host.send(datagram(data), NEEDS_CHECKSUM, UDP_START, UDP_CHECKSUM, gso=(USO, 1000))
    assert answers(host, 6) == [data[at : at + 1000] for at in range(0, len(data), 1000)]
