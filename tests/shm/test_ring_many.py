"""Many messages at a time: the same queue as one by one, whatever comes between."""

from __future__ import annotations

import signal
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shm
from shm.receiver import MANY
from shm.sender import BATCH, BATCH_BYTES

Make = Callable[..., shm.Region]
SMALL = shm.ChannelSpec("c", size=1024)
LANES = shm.ChannelSpec("m", kind="mpsc", size=1024, lanes=2)


def pattern(number: int, size: int) -> bytes:
    return bytes((number * 31 + i) & 0xFF for i in range(size))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([SMALL, LANES]),
    actions=st.lists(
        st.one_of(
            st.lists(st.integers(0, 440), max_size=20),
            st.builds(lambda size, count: [size] * count, st.integers(0, 100), st.integers(0, 70)),
            st.integers(1, 80),
        ),
        max_size=40,
    ),
)
def test_it_is_a_queue(name: str, kind: shm.ChannelSpec, actions: list[list[int] | int]) -> None:
    """What went out of a batch that was too much is said exactly, and comes, and nothing else."""
    expected: deque[bytes] = deque()
    with shm.Region.create(name, channels=[kind], serve=False) as region:
        sender, receiver = region.sender(kind.name), region.receiver(kind.name)
        for number, action in enumerate(actions):
            if isinstance(action, list):
                batch = [pattern(number + i, size) for i, size in enumerate(action)]
                try:
                    sent = sender.send_many(batch, timeout=0)
                    assert sent == len(batch)
                except shm.ChannelFull as error:
                    sent = error.sent
                    assert sent < len(batch)
                expected.extend(batch[:sent])
            elif expected:
                got = receiver.recv_many(action, timeout=0)
                assert 1 <= len(got) <= action
                assert got == [expected.popleft() for _ in got]
            else:
                with pytest.raises(shm.ChannelTimeout):
                    receiver.recv_many(action, timeout=0)
        while expected:
            for message in receiver.recv_many(timeout=0):
                assert message == expected.popleft()


def test_all_that_is_there_comes_at_once(make: Make) -> None:
    region = make(shm.ChannelSpec("c", size=1 << 16))
    sender, receiver = region.sender("c"), region.receiver("c")
    for size in (0, 1, 31, 56, 57, 200):
        for count in (1, 2, 31, 32, 33, 64, 100):
            messages = [pattern(i, size) for i in range(count)]
            assert sender.send_many(tuple(messages), timeout=0) == count
            assert receiver.recv_many(timeout=0) == messages
    assert sender.send_many([]) == 0
    assert receiver.recv_many(0) == []


def test_more_than_a_batch(make: Make, until: Callable[..., None]) -> None:
    """Many batches go through a small ring, with both sides waiting now and then."""
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    messages = [pattern(i, i % 200) for i in range(3 * BATCH + 7)]
    got: list[bytes] = []

    def receive() -> None:
        while len(got) < len(messages):
            got.extend(receiver.recv_many(100, timeout=10))

    thread = threading.Thread(target=receive)
    thread.start()
    assert sender.send_many(messages, timeout=10) == len(messages)
    thread.join()
    assert got == messages


def test_batches_of_large_messages(make: Make) -> None:
    region = make(shm.ChannelSpec("c", size=4 << 20))
    sender, receiver = region.sender("c"), region.receiver("c")
    messages = [pattern(i, MANY - 100) for i in range(3)] + [pattern(9, BATCH_BYTES + 1), b"short"]
    assert sender.send_many(messages, timeout=0) == 5
    first = receiver.recv_many(timeout=0)
    assert first == messages[:2]  # No more is added once there are MANY bytes.
    got = [*first]
    while len(got) < 5:
        got += receiver.recv_many(timeout=0)
    assert got == messages


def test_buffers_of_all_kinds(make: Make) -> None:
    """What calls its length something else than bytes is sent whole all the same."""
    numpy = pytest.importorskip("numpy")
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    words = [array("I", [1, 2]), memoryview(array("H", [3])), numpy.array([4.0]), bytearray(b"5"), b"6"]
    assert sender.send_many(words, timeout=0) == 5
    assert receiver.recv_many(timeout=0) == [bytes(memoryview(word)) for word in words]
    with pytest.raises(TypeError):
        sender.send_many([b"a", "text"])
    assert receiver.recv_many(timeout=0) == [b"a"]


def test_one_that_is_too_long(make: Make) -> None:
    region = make(shm.ChannelSpec("c", max_message=100))
    sender, receiver = region.sender("c"), region.receiver("c")
    with pytest.raises(shm.MessageTooLong, match="max_message, 100 bytes") as caught:
        sender.send_many([b"a", bytes(100), bytes(101), b"b"])
    assert caught.value.sent == 2
    assert receiver.recv_many(timeout=0) == [b"a", bytes(100)]


def test_an_iterator_s_messages_go_as_they_come(make: Make) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")

    def conversation() -> Iterator[bytes]:
        for number in range(5):
            yield b"%d" % number
            assert receiver.recv(timeout=0) == b"%d" % number

    assert sender.send_many(conversation()) == 5
    with pytest.raises(shm.ChannelFull) as caught:
        sender.send_many((b"x" for _ in range(100)), timeout=0)
    assert caught.value.sent == 15


def test_each_message_has_the_time_limit(make: Make) -> None:
    """A receiver that takes one each 50 ms makes a batch of ten wait for longer than each of them may."""
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    sender.send_many([b"x"] * 15, timeout=0)

    def receive() -> None:
        for _ in range(10):
            time.sleep(0.05)
            receiver.recv()

    thread = threading.Thread(target=receive)
    thread.start()
    assert sender.send_many([b"y"] * 10, timeout=0.4) == 10
    thread.join()
    start = time.monotonic()
    with pytest.raises(shm.ChannelFull) as caught:
        sender.send_many([b"z"] * 10, timeout=0.1)
    assert caught.value.sent == 0
    assert time.monotonic() - start >= 0.09


@pytest.mark.parametrize("spin_ns", [0, shm.SPIN_ALWAYS])
def test_signals_come_between(make: Make, spin_ns: int) -> None:
    """A handler runs while a batch waits; the batch goes on, and its time limit stands."""
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    sender.spin_ns = spin_ns
    hits: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: hits.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        start = time.monotonic()
        with pytest.raises(shm.ChannelFull) as caught:
            sender.send_many([b"%d" % number for number in range(20)], timeout=0.5)
        assert time.monotonic() - start >= 0.49
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits
    assert caught.value.sent == 15
    assert receiver.recv_many(timeout=0) == [b"%d" % number for number in range(15)]


def test_a_peer_that_ends(make: Make) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    sender.send_many([b"1", b"2"])
    sender.close()
    assert receiver.recv_many() == [b"1", b"2"]
    with pytest.raises(shm.ChannelClosed):
        receiver.recv_many()
    again = region.sender("c")
    receiver.close()
    with pytest.raises(shm.ChannelClosed) as caught:
        again.send_many([b"3"])
    assert caught.value.sent == 0


def test_a_broadcast_s_messages_are_not_skipped(make: Make) -> None:
    region = make(shm.ChannelSpec("b", kind="broadcast", size=1 << 20))
    sender, receiver = region.sender("b"), region.receiver("b")
    messages = [pattern(i, 40_000) for i in range(8)]
    assert sender.send_many(messages) == 8
    got: list[bytes] = []
    while len(got) < 8:
        got += receiver.recv_many(timeout=0)
    assert got == messages
    assert receiver.lost == 0


def test_a_spoiled_lane_is_told_of_behind_what_came_before(make: Make) -> None:
    region = make(LANES)
    receiver, good, bad = region.receiver("m"), region.sender("m"), region.sender("m")
    good.send_many([b"one", b"two"])
    bad.send(b"x")
    info = region.channels["m"]
    cells = memoryview(region._map)[info.offset : info.offset + info.span].cast("Q")
    cells[(256 + (512 + 1024) + 512) // 8] = 1 | 0xFFFFFFF0 << 32
    assert receiver.recv_many(timeout=5) == [b"one"]
    with pytest.raises(shm.RingError, match="lane 1: a peer spoiled its field length"):
        receiver.recv_many(timeout=5)
    assert receiver.recv_many(timeout=5) == [b"two"]
    with pytest.raises(shm.ChannelTimeout):
        receiver.recv_many(timeout=0)


def test_a_batch_sent_while_the_receiver_sleeps(make: Make, until: Callable[..., None]) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    receiver.spin_ns = 0
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(receiver.recv_many(timeout=10)))
    thread.start()
    until(lambda: receiver.sleeps)
    sender.send_many([b"a", b"b"], timeout=0)
    thread.join()
    got += [] if len(got) == 2 else receiver.recv_many(timeout=1)
    assert got == [b"a", b"b"]
    assert receiver.late == 0
