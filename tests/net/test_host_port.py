"""Processes of the host as ports of a network, through a real switch process."""

from __future__ import annotations

import itertools
import os
import struct
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from switch_process import BROADCAST, LIMIT, SwitchProcess, frame, mac, own, python, running, shared, switch, until

import net
from net import requests
from net.errors import NetError
from net.port import HostPort, Offload

__all__ = ["own", "shared", "switch"]


def port(name: str, **options: object) -> HostPort:
    return net.attach("c/lan", name=name, **options)  # type: ignore[arg-type]


def test_frames_in_both_directions(switch: SwitchProcess) -> None:
    with port("a") as a, port("b") as b:
        a.send(frame(BROADCAST, mac(1), b"who is there"))
        assert b.recv(LIMIT) == frame(BROADCAST, mac(1), b"who is there")
        b.send(frame(mac(1), mac(2), b"I am"))
        assert a.recv(LIMIT) == frame(mac(1), mac(2), b"I am")
        found = switch.show()
        assert {bytes(address["mac"]): address["port"] for address in found["addresses"]} == {mac(1): "a", mac(2): "b"}
        counters = a.show()["counters"]
        assert (counters["frames_in"], counters["frames_out"]) == (1, 1)
        assert (a.mtu, a.show()["kind"], a.show()["held"]) == (1500, "ring", True)
    until(lambda: switch.ports() == [], "the ports are still there")


def test_learnt_addresses_are_not_flooded(switch: SwitchProcess) -> None:
    with port("a") as a, port("b") as b, port("c") as c:
        b.send(frame(BROADCAST, mac(2)))
        assert a.recv(LIMIT) == c.recv(LIMIT) == frame(BROADCAST, mac(2))
        a.send(frame(mac(2), mac(1), b"for b"))
        a.send(frame(BROADCAST, mac(1), b"for all"))
        assert b.recv(LIMIT).endswith(b"for b")
        assert c.recv(LIMIT).endswith(b"for all")


def test_many_frames_in_order(switch: SwitchProcess) -> None:
    with port("a") as a, port("b") as b:
        b.send(frame(BROADCAST, mac(2)))
        a.recv(LIMIT)
        sent = [frame(mac(2), mac(1), struct.pack("<I", number) + os.urandom(number % 1400)) for number in range(3000)]
        got: list[bytes] = []

        def take() -> None:
            while len(got) < len(sent):
                got.extend(b.recv_many(timeout=LIMIT))

        taking = threading.Thread(target=take)
        taking.start()
        # A port that is full loses frames, as a wire does: no more are on their way than fit.
        for at in range(0, len(sent), 50):
            assert a.send_many(sent[at : at + 50], timeout=LIMIT) == 50
            until(lambda at=at: len(got) >= at or not taking.is_alive(), "frames are lost")  # type: ignore[misc]
        taking.join(LIMIT)
        assert got == sent


@pytest.mark.parametrize("mtu", [68, 9000, 65535])
def test_frames_of_all_sizes(mtu: int) -> None:
    with running(mtu=mtu), port("a") as a, port("b") as b:
        for size in (0, 1, 45, 46, 47, mtu - 1, mtu, mtu + 4):
            sent = frame(BROADCAST, mac(1), os.urandom(size))
            a.send(sent, timeout=LIMIT)
            assert b.recv(LIMIT) == sent
        for size in (mtu + 5, 70000):
            with pytest.raises(NetError, match=rf"the network's MTU of {mtu} allows 14 to {mtu + 18}"):
                a.send(frame(BROADCAST, mac(1), bytes(size)))
        with pytest.raises(NetError, match="a frame of 13 bytes can't be"):
            a.send(bytes(13))


def test_time_limits(switch: SwitchProcess) -> None:
    with port("a") as a:
        start = time.monotonic()
        with pytest.raises(net.PortTimeout, match="port a of c/lan: the time limit passed"):
            a.recv(0.15)
        assert time.monotonic() - start >= 0.15
        with pytest.raises(net.PortTimeout):
            a.recv_many(timeout=0)
        switch.process.send_signal(19)  # It stands still: the ring fills.
        try:
            with pytest.raises(net.PortTimeout):
                a.send_many(itertools.repeat(frame(BROADCAST, mac(1), bytes(1400))), timeout=0)
        finally:
            switch.process.send_signal(18)
        a.send(frame(BROADCAST, mac(1)), timeout=LIMIT)


def test_what_is_not_from_its_own_address_is_dropped(switch: SwitchProcess) -> None:
    with port("a", mac=mac(1)) as a, port("b") as b:
        assert a.mac == mac(1)
        a.send(frame(BROADCAST, mac(9), b"forged"))
        a.send(frame(BROADCAST, mac(1), b"true"))
        assert b.recv(LIMIT).endswith(b"true")
        assert a.show()["counters"]["drops"]["spoofed"] == 1
        assert b.mac != a.mac
        assert b.mac[0] & 3 == 2


def test_isolated_ports_do_not_hear_each_other(switch: SwitchProcess) -> None:
    with port("a", isolated=True) as a, port("b", isolated=True) as b, port("c") as c:
        for one, other in ((a, b), (a, c), (c, a)):
            one.send(frame(BROADCAST, mac(1)))
            with pytest.raises(net.PortTimeout):
                other.recv(0.05)


def test_offloads(switch: SwitchProcess) -> None:
    undone = Offload(flags=1, csum_start=34, csum_offset=6)
    packet = bytes.fromhex("4500002100000000401100000a0000010a00000200350035000d0000") + b"hello"
    sent = BROADCAST + mac(1) + b"\x08\x00" + packet
    with port("a", offloads=True) as a, port("b", offloads=True) as b, port("plain") as plain:
        a.send(sent, offload=undone)
        got = b.recv_frame(LIMIT)
        assert got.data == sent
        assert got.offload.flags & 1
        assert (got.offload.csum_start, got.offload.csum_offset) == (34, 6)
        done = plain.recv_frame(LIMIT)
        assert done.offload == Offload()
        assert done.data[:40] == sent[:40]
        assert done.data[40:42] != b"\0\0"


def test_names_that_are_taken(switch: SwitchProcess) -> None:
    with port("a"):
        with pytest.raises(NetError, match="a"):
            port("a")
        with pytest.raises(NetError, match="'A' is no name of a port"):
            port("A")
        assert switch.ports() == ["a"]
    for network in ("lan", "c/x/y", "../lan"):
        with pytest.raises(NetError, match="is no network; write CLUSTER/NETWORK"):
            net.attach(network, name="a")
    with pytest.raises(NetError, match="network c/wan: no switch runs"):
        net.attach("c/wan", name="a")


def test_one_that_was_removed_is_told_so(switch: SwitchProcess) -> None:
    with port("a") as a:
        switch.call(requests.remove("a"))
        with pytest.raises(net.PortGone, match="port a of c/lan was removed from its switch"):
            a.recv(LIMIT)
        with pytest.raises(net.PortGone):
            a.show()
    with pytest.raises(net.PortGone, match="is closed"):
        a.recv(0)
    a.close()


PROGRAM = """
import net, sys
port = net.attach("c/lan", name="child")
print("ready", flush=True)
while True:
    frame = port.recv()
    port.send(frame[6:12] + port.mac + frame[12:])
"""


def test_a_process_that_answers_and_is_killed(switch: SwitchProcess) -> None:
    def mapped() -> int:
        with open(f"/proc/{switch.process.pid}/maps") as maps:
            return sum("net.lan." in line for line in maps)

    with port("a") as a:
        before = mapped()
        child = python(PROGRAM)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert mapped() > before
        a.send(frame(BROADCAST, a.mac, b"ping"))
        answer = a.recv(LIMIT)
        assert (answer[:6], answer[12:]) == (a.mac, b"\x88\xb5ping")
        child.kill()
        child.communicate()
        until(lambda: switch.ports() == ["a"], "the port is still there")
        assert mapped() == before
        a.send(frame(answer[6:12], a.mac))
        assert switch.process.poll() is None


def test_it_joins_the_next_switch(own: SwitchProcess) -> None:
    with port("a") as a, port("b") as b:
        for number in range(3):
            a.send(frame(BROADCAST, mac(1), bytes([number])))
            until(lambda: own.port("b")["counters"]["frames_out"] == 1, "the frame is lost")
            own.kill()
            a.send(frame(BROADCAST, mac(1), b"sent meanwhile"), timeout=0)
            with pytest.raises(net.PortTimeout):
                a.recv(0.05)
            own.start()
            until(lambda: sorted(own.ports()) == ["a", "b"], "they don't join again")
            until(lambda: own.port("a")["counters"]["frames_in"] == 1, "what was in the ring is lost")
            assert b.recv(LIMIT)[-1] == number
            b.send(frame(BROADCAST, mac(2), b"and back"))
            assert a.recv(LIMIT).endswith(b"and back")
            a.send(frame(mac(2), mac(1), b"there again"))
            while not b.recv(LIMIT).endswith(b"there again"):  # The one sent meanwhile may come, if b was there.
                pass
            own.call(requests.stop())  # In good order: the rings are let go.
            own.process.wait(LIMIT)
            own.client.close()
            own.start()
            until(lambda: sorted(own.ports()) == ["a", "b"], "they don't join again")


def test_it_waits_for_another_switch_no_longer_than_it_was_told(own: SwitchProcess) -> None:
    with port("a", patience=0.1) as a:
        own.kill()
        with pytest.raises(net.PortGone, match="the switch ended, and none came in its place"):
            a.recv(LIMIT)
        with pytest.raises(net.PortGone):
            a.show()
    own.start()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.tuples(*(st.integers(0, 255),) * 2, *(st.integers(0, 65535),) * 4))
def test_the_offload_header(values: tuple[int, ...]) -> None:
    offload = Offload(*values)
    assert len(offload.pack()) == 12
    assert Offload.unpack(offload.pack()) == offload
