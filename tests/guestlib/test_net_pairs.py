"""Two unikernels joined back to back: what one sends is what the other receives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from lan import GUEST, PEER, PEER_MAC, Lan, Network  # type: ignore[import-not-found]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "udp.c"
JUMBO = 65535


class Pair:
    """Two guests on one wire, `a` and `b`."""

    def __init__(self, lan: Lan, source: str | Path, a: Sequence[str], b: Sequence[str], mtu: int = 1500) -> None:
        wire = lan.wire(mtu)
        on_a = Network(wire, names={"b": PEER}, mtu=mtu)
        on_b = Network(wire.crossed(), mac=PEER_MAC, address=PEER, names={"a": GUEST}, mtu=mtu)
        self.b = lan.guest(source, on_b, name="b", args=b)
        self.a = lan.guest(source, on_a, name="a", args=a)


@pytest.mark.parametrize(
    ("rounds", "size", "how", "mtu"),
    [(3000, 64, "spin", 1500), (200, 1472, "sleep", 1500), (200, JUMBO - 28, "spin", JUMBO)],
    ids=["small", "asleep", "jumbo"],
)
def test_datagrams_bounce(lan: Lan, rounds: int, size: int, how: str, mtu: int) -> None:
    """The example: it compares each answer with what it sent."""
    both = Pair(lan, EXAMPLE, ("ping", "b", str(rounds), str(size), how), ("pong", how), mtu)
    found = both.a.join()
    assert (found["peer"], found["rounds"], found["size"], found["lost"]) == (PEER, rounds, size, 0)
    assert both.b.join()["answered"] >= rounds
    if how == "sleep":
        assert both.a.waits + both.b.waits > 0


def test_the_example_says_whom_it_looks_for(lan: Lan) -> None:
    both = Pair(lan, EXAMPLE, ("ping", "c"), ("pong", "sleep"))
    with pytest.raises(AssertionError, match="nobody on the network is called c"):
        both.a.join()


FRAMES = """
static uint8_t frame[2000];
static uint32_t sum(const uint8_t *bytes, size_t size) {
    uint32_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum = sum * 31 + bytes[i];
    return sum;
}
int main(int argc, char **argv) {
    struct net_port *port = net_must_open("lan");
    struct net_offload offload;
    uint32_t all = 0, largest = net_max_frame(port);
    net_spin(port, strtoul(argv[2], NULL, 10));
    for (uint32_t i = 0; i < 3000; i++) {
        size_t size = 14 + i * 7 % (largest - 13);
        if (argv[1][0] == 's') {
            uint8_t *room = frame;
            if (i % 2)
                net_must("reserve", net_reserve(port, i % 3 ? size : largest, &room, GUEST_NO_LIMIT));
            for (size_t k = 0; k < size; k++)
                room[k] = (uint8_t)guest_random();
            all = all * 31 + sum(room, size);
            offload = (struct net_offload){.flags = NET_NEEDS_CHECKSUM, .checksum_start = i % (size - 1)};
            if (i % 2) {
                *net_offload(room) = offload;
                net_must("commit", net_commit(port, size));
            } else
                net_must("send", net_send(port, frame, size, &offload, GUEST_NO_LIMIT));
            continue;
        }
        const uint8_t *there = frame;
        int64_t got = i % 5 ? net_receive(port, frame, sizeof frame, &offload, GUEST_NO_LIMIT)
                            : net_peek(port, &there, &offload, GUEST_NO_LIMIT);
        net_must("receive", got);
        if ((size_t)got != size || offload.flags != NET_NEEDS_CHECKSUM || offload.checksum_start != i % (size - 1))
            guest_fail("frame %u of %ld bytes, checksum from %u on", i, (long)got, offload.checksum_start);
        all = all * 31 + sum(there, size);
        if (i % 5 == 0)
            net_release(port);
    }
    report("all", all);
    report("sent", net_counters(port)->sent);
    report("received", net_counters(port)->received);
    return 0;
}
"""


@pytest.mark.parametrize("spin", ["0", "20000"])
def test_frames_arrive_in_order_and_whole(lan: Lan, spin: str) -> None:
    """All sizes, copied and in place, with what was left undone."""
    both = Pair(lan, FRAMES, ("send", spin), ("receive", spin))
    sent, received = both.a.join(), both.b.join()
    assert received["all"] == sent["all"]
    assert (sent["sent"], received["received"]) == (3000, 3000)
