"""Channels between processes: sleeping, waking, dying in the middle of a message, coming back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import shm
from shm import naming, wire

Make = Callable[..., shm.Region]
Fork = Callable[[Callable[[], object]], int]
Until = Callable[[Callable[[], object]], None]

PAIR = (shm.ChannelSpec("there", size=4096), shm.ChannelSpec("back", size=4096))
ROUNDS = 1_000_000 if os.environ.get("HOSTD_LONG") else 100_000


def echo(name: str, spin_ns: int) -> Callable[[], None]:
    def work() -> None:
        with shm.Region.open(name) as region:
            receiver, sender = region.receiver("there"), region.sender("back")
            receiver.spin_ns = spin_ns
            try:
                while True:
                    sender.send(receiver.recv())
            except shm.ChannelClosed:
                sender.send_object([receiver.late, receiver.sleeps])

    return work


@pytest.mark.timeout(600)
@pytest.mark.parametrize("spin_ns", [0, 2000])
def test_no_wake_up_is_lost(make: Make, name: str, fork: Fork, spin_ns: int) -> None:
    """Both sides sleep for every message. One who woke by the clock though a message was there shows in `late`."""
    region = make(*PAIR, serve=True)
    fork(echo(name, spin_ns))
    sender, receiver = region.sender("there"), region.receiver("back")
    receiver.spin_ns = spin_ns
    for number in range(ROUNDS):
        sender.send(number.to_bytes(8, "little"), timeout=10)
        assert int.from_bytes(receiver.recv(timeout=10), "little") == number
    sender.close()
    late, sleeps = receiver.recv_object(timeout=10)
    assert (late, receiver.late) == (0, 0)
    if not spin_ns:
        assert min(sleeps, receiver.sleeps) > ROUNDS / 10  # It is sleeping that was tried.


def test_no_wake_up_for_room_is_lost(make: Make, name: str, fork: Fork) -> None:
    region = make(shm.ChannelSpec("c", size=512), serve=True)

    def produce() -> None:
        with shm.Region.open(name) as joined, joined.sender("c") as sender:
            sender.spin_ns = 0
            for number in range(50_000):
                sender.send(number.to_bytes(4, "little") * (number % 13 + 1))
            assert sender.late == 0
            assert sender.sleeps

    child = fork(produce)
    receiver = region.receiver("c")
    receiver.spin_ns = 0
    for number in range(50_000):
        assert receiver.recv(timeout=10) == number.to_bytes(4, "little") * (number % 13 + 1)
    with pytest.raises(shm.ChannelClosed):
        receiver.recv(timeout=10)
    assert receiver.late == 0
    assert os.waitpid(child, 0)[1] == 0


def test_mpsc_from_processes_that_sleep(make: Make, name: str, fork: Fork) -> None:
    region = make(shm.ChannelSpec("m", kind="mpsc", size=512, lanes=4), serve=True)

    def produce() -> None:
        with shm.Region.open(name) as joined, joined.sender("m") as sender:
            sender.spin_ns = 0
            for number in range(5000):
                sender.send(number.to_bytes(4, "little"))

    children = [fork(produce) for _ in range(4)]
    receiver = region.receiver("m")
    receiver.spin_ns = 0
    expected = [0] * 4
    for _ in range(20_000):
        number = int.from_bytes(receiver.recv(timeout=10), "little")
        assert number == expected[receiver.sender_lane]
        expected[receiver.sender_lane] += 1
    with pytest.raises(shm.ChannelClosed):
        receiver.recv(timeout=10)
    assert receiver.late == 0
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4


def test_an_idle_receiver_uses_no_processor(make: Make, name: str, fork: Fork) -> None:
    make(*PAIR, serve=True)

    def idle() -> None:
        with shm.Region.open(name) as joined, joined.receiver("there") as receiver:
            before = time.process_time()
            with pytest.raises(shm.ChannelTimeout):
                receiver.recv(timeout=2.0)
            assert time.process_time() - before < 0.05

    assert os.waitpid(fork(idle), 0)[1] == 0


def test_broadcast_to_processes(make: Make, name: str, fork: Fork, until: Until) -> None:
    region = make(
        shm.ChannelSpec("b", kind="broadcast", size=2048), shm.ChannelSpec("m", kind="mpsc", lanes=3), serve=True
    )
    total = 20_000

    def read() -> None:
        with shm.Region.open(name) as joined, joined.sender("m") as done, joined.receiver("b") as receiver:
            done.send(b"here")
            got, last = 0, -1
            try:
                while True:
                    message = receiver.recv()
                    number = int.from_bytes(message[:4], "little")
                    assert number > last
                    assert message == number.to_bytes(4, "little") * (number % 40 + 1)  # Never torn.
                    last, got = number, got + 1
            except shm.ChannelClosed:
                assert last == total - 1
                assert got + receiver.lost == total
            done.send(b"done")

    for _ in range(3):
        fork(read)
    back = region.receiver("m")
    assert [back.recv(timeout=10) for _ in range(3)] == [b"here"] * 3
    with region.sender("b") as sender:
        for number in range(total):
            sender.send(number.to_bytes(4, "little") * (number % 40 + 1))
    assert [back.recv(timeout=10) for _ in range(3)] == [b"done"] * 3


def test_killed_in_the_middle_of_a_message(make: Make, name: str, fork: Fork) -> None:
    region = make(*PAIR, serve=True)

    def die() -> None:
        joined = shm.Region.open(name)
        sender = joined.sender("there")
        sender.send(b"whole")
        with sender.reserve(1000) as room:
            room[:500] = b"half" * 125
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork(die)
    receiver = region.receiver("there")
    start = time.monotonic()
    assert receiver.recv(timeout=10) == b"whole"
    with pytest.raises(shm.PeerGone, match="its other end died"):
        receiver.recv(timeout=10)
    assert time.monotonic() - start < 5
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert region.state("there", role="send") == "gone"
    # Another one goes on where it stopped.
    with region.sender("there") as again:
        again.send(b"again")
        assert receiver.recv(timeout=10) == b"again"


def test_killed_at_any_moment(make: Make, name: str, fork: Fork) -> None:
    """A producer killed while it sends as fast as it can, and the next one: nothing is torn, nothing doubled."""
    region = make(shm.ChannelSpec("c", size=2048), serve=True)
    receiver = region.receiver("c")
    last = -1

    def check(message: bytes) -> None:
        nonlocal last
        number = int.from_bytes(message[:8], "little")
        assert message == number.to_bytes(8, "little") * (number % 50 + 1)
        assert number == last + 1
        last = number

    for turn in range(20):

        def produce(first: int = last + 1) -> None:
            joined = shm.Region.open(name)
            sender = joined.sender("c")
            number = first
            while True:
                sender.send(number.to_bytes(8, "little") * (number % 50 + 1))
                number += 1

        # What the one before had sent has been taken, so that this one knows how far that came.
        region.mark_fresh("c", role="send")
        child = fork(produce)
        for _ in range(50 + 37 * turn):
            check(receiver.recv(timeout=10))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with contextlib.suppress(shm.PeerGone):
            while True:
                check(receiver.recv(timeout=10))
        assert region.state("c", role="send") == "gone"


def test_a_killed_receiver(make: Make, name: str, fork: Fork) -> None:
    region = make(*PAIR, serve=True)

    def die() -> None:
        receiver = shm.Region.open(name).receiver("there")
        receiver.recv()
        with receiver.peek():
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork(die)
    sender = region.sender("there")
    sent = 0
    with contextlib.suppress(shm.PeerGone):
        while sent < 1000:
            sender.send(sent.to_bytes(8, "little") * 30, timeout=10)
            sent += 1
    assert 1 < sent < 1000
    os.waitpid(child, 0)
    # The next one gets everything but what was taken.
    with region.receiver("there") as receiver:
        for number in range(1, sent):
            assert receiver.recv(timeout=0) == number.to_bytes(8, "little") * 30
        sender.send(b"goes on")
        assert receiver.recv(timeout=0) == b"goes on"


def test_a_killed_party(make: Make, name: str, fork: Fork) -> None:
    region = make(shm.ChannelSpec("all", kind="barrier", lanes=2), *PAIR, serve=True)

    def die() -> None:
        joined = shm.Region.open(name)
        joined.barrier("all").wait(timeout=10)
        os.kill(os.getpid(), signal.SIGKILL)

    party = region.barrier("all")
    fork(die)
    party.wait(timeout=10)
    with pytest.raises(shm.PeerGone):
        party.wait(timeout=10)


def test_ends_of_two_processes_are_exclusive(make: Make, name: str) -> None:
    region = make(*PAIR, serve=True)
    with shm.Region.open(name) as one, shm.Region.open(name) as two:
        sender = one.sender("there")
        with pytest.raises(shm.ShmError, match="taken"):
            two.sender("there")
        with pytest.raises(shm.ShmError, match="taken"):
            region.sender("there")
        sender.close()
        two.sender("there").close()


def test_ends_of_guests_are_theirs(make: Make, name: str) -> None:
    region = make(shm.ChannelSpec("m", kind="mpsc", lanes=3))
    with shm.Broker() as broker:
        broker.add(region, reserved=[("m", "send", 0), ("m", "send", 2), ("m", "receive", 0)])
        with shm.Region.open(name) as joined:
            assert joined.sender("m").lane == 1
            with pytest.raises(shm.ShmError, match="by a guest"):
                joined.receiver("m")
            with pytest.raises(shm.ShmError, match="by a guest"):
                joined.sender("m", lane=2)


def test_an_owner_that_closes(make: Make, name: str) -> None:
    region = make(*PAIR, serve=True, size=10)
    joined = shm.Region.open(name)
    receiver = joined.receiver("there")
    region.close()
    joined.data[0] = 1  # The memory stays.
    receiver.close()
    with pytest.raises(shm.ShmError, match=r"does not answer|ended"):
        joined.sender("there")
    joined.close()


def test_an_adopted_region_disowns_lost_ends(make: Make, name: str) -> None:
    region = make(*PAIR)
    receiver = region.receiver("there")
    bells = [os.dup(bell) for bell in region.bells]
    found = shm.Region.adopt(name, os.dup(region.fd), bells)
    with shm.Broker() as broker:
        broker.add(found, reserved=[("back", "send", 0)])
        assert found.state("there", role="receive") == "gone"
    receiver.close()
    found.close()


def test_marking(make: Make) -> None:
    region = make(*PAIR)
    region.mark_gone("there", role="send")
    with pytest.raises(shm.PeerGone):
        region.receiver("there").recv()
    region.mark_fresh("there", role="send")
    assert region.state("there", role="send") == "never"
    with pytest.raises(shm.ShmError, match="no role"):
        region.mark_gone("there", role="admire")
    with pytest.raises(shm.ShmError, match="does not exist"):
        region.mark_gone("other", role="send")


def connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(5)
    folder = os.open(naming.socket_path(name).parent, os.O_PATH)
    connection.connect(f"/proc/self/fd/{folder}/{naming.socket_path(name).name}")
    os.close(folder)
    return connection


HELLO = {"hello": wire.VERSION, "access": "rw"}


@pytest.mark.parametrize(
    "packets",
    [
        [b"garbage"],
        [b"\xc1"],
        [b"\x93\1\2\3"],
        [b"x" * 100_000],
        [{"hello": 99}],
        [{"hello": wire.VERSION, "access": "all"}],
        [{"attach": ["there", "send", None]}],
        [HELLO, {"attach": 7}],
        [HELLO, {"attach": [1, 2, 3]}],
        [HELLO, {"attach": ["there", "send", "x"]}],
        [HELLO, {"release": [[], [], []]}],
        [HELLO, {"what": "ever"}],
    ],
)
def test_a_client_that_talks_nonsense(make: Make, name: str, packets: list[Any]) -> None:
    make(*PAIR, serve=True)
    connection = connect(name)
    for packet in packets:
        if isinstance(packet, dict):
            wire.send(connection, packet)
        else:
            connection.send(packet)
    with connection:
        try:
            while (answer := wire.receive(connection)) is not None:
                wire.close(answer[1])
        except ConnectionResetError:
            pass
    with shm.Region.open(name) as joined:  # The others go on.
        joined.sender("there").send(b"x")


def test_a_client_that_sends_descriptors_or_never_reads(make: Make, name: str) -> None:
    make(*PAIR, serve=True)
    connections = [connect(name) for _ in range(20)]
    before = len(os.listdir("/proc/self/fd"))
    for connection in connections:
        wire.send(connection, HELLO, [0, 1, 2])
        connection.setblocking(False)
        try:
            for _ in range(10_000):
                wire.send(connection, {"attach": ["there", "send", None]})
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
    with shm.Region.open(name):
        pass
    for connection in connections:
        connection.close()
    with shm.Region.open(name) as joined:
        joined.sender("back").send(b"x")
    assert len(os.listdir("/proc/self/fd")) <= before + 20
