"""Messages through channels within one process: order, sizes, wrap-around, limits, errors."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shm

Make = Callable[..., shm.Region]
SMALL = shm.ChannelSpec("c", size=1024)


def pattern(number: int, size: int) -> bytes:
    return bytes((number * 31 + i) & 0xFF for i in range(size))


def test_every_size_at_every_place(make: Make) -> None:
    """Each size there is, beginning at each cell there is: pads and wrap-around included."""
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    limit = sender.info.max_message
    for start in range(16):
        for size in range(limit + 1):
            message = pattern(size, size)
            sender.send(message, timeout=0)
            assert receiver.recv(timeout=0) == message
        for _ in range(start):
            sender.send(b"", timeout=0)
            receiver.recv(timeout=0)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(st.one_of(st.integers(0, 440), st.just(-1)), max_size=120))
def test_it_is_a_queue(name: str, actions: list[int]) -> None:
    """Whatever is sent and received in whatever order: a queue that is full sometimes, and never wrong."""
    expected: deque[bytes] = deque()
    with shm.Region.create(name, channels=[SMALL], serve=False) as region:
        sender, receiver = region.sender("c"), region.receiver("c")
        for number, action in enumerate(actions):
            if action >= 0:
                try:
                    sender.send(pattern(number, action), timeout=0)
                    expected.append(pattern(number, action))
                except shm.ChannelFull:
                    assert sum(len(message) + 8 for message in expected) > 0
            elif expected:
                assert receiver.recv(timeout=0) == expected.popleft()
            else:
                with pytest.raises(shm.ChannelTimeout):
                    receiver.recv(timeout=0)
        while expected:
            assert receiver.recv(timeout=0) == expected.popleft()


def test_a_message_that_looks_like_headers(make: Make) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    # What was payload becomes the place of a header later, at every position of several rounds.
    for step in range(1, 200):
        fake = b"".join(sequence.to_bytes(4, "little") + b"\10\0\0\0" for sequence in range(step, step + 20))
        sender.send(fake[: 8 * (step % 20)])
        assert receiver.recv(timeout=0) == fake[: 8 * (step % 20)]
        with pytest.raises(shm.ChannelTimeout):
            receiver.recv(timeout=0)


def test_full_and_free_again(make: Make) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    assert sender.send_many([b"x" * 40] * 15, timeout=0) == 15  # One cell is for the header behind the last message.
    with pytest.raises(shm.ChannelFull, match="the time limit passed"):
        sender.send(b"", timeout=0)
    assert receiver.recv() == b"x" * 40
    sender.send(b"y", timeout=0)


def test_too_long(make: Make) -> None:
    region = make(shm.ChannelSpec("c", max_message=100))
    sender, receiver = region.sender("c"), region.receiver("c")
    with pytest.raises(shm.MessageTooLong, match="max_message, 100 bytes"):
        sender.send(bytes(101))
    with pytest.raises(shm.MessageTooLong), sender.reserve(101):
        pass
    with pytest.raises(shm.MessageTooLong), sender.reserve(-1):
        pass
    sender.send(bytes(100))
    with pytest.raises(shm.MessageTooLong):
        receiver.recv_into(bytearray(99))
    assert receiver.recv_into(bytearray(100)) == 100


def test_buffers_of_all_kinds(make: Make) -> None:
    numpy = pytest.importorskip("numpy")
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    for data in (b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), numpy.array([0x64636261], dtype="<u4")):
        sender.send(data)
        assert receiver.recv(timeout=0) == b"abcd"
    with pytest.raises(TypeError):
        sender.send("text")


def test_many_at_a_time(make: Make) -> None:
    region = make(shm.ChannelSpec("c", size=1 << 16, max_message=100))
    sender, receiver = region.sender("c"), region.receiver("c")
    messages = [pattern(i, i % 101) for i in range(400)]
    assert sender.send_many(messages) == 400
    assert receiver.recv_many(10) == messages[:10]
    assert receiver.recv_many() == messages[10:]
    with pytest.raises(shm.ChannelTimeout):
        receiver.recv_many(timeout=0)


def test_many_never_more_than_their_buffer(make: Make) -> None:
    region = make(shm.ChannelSpec("c", size=1 << 20))
    sender, receiver = region.sender("c"), region.receiver("c")
    messages = [pattern(i, 200_000) for i in range(4)]
    sender.send_many(messages)
    got: list[bytes] = []
    while len(got) < 4:
        got += receiver.recv_many(timeout=0)
    assert got == messages


def test_reserve_and_peek(make: Make) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    with sender.reserve(3) as room:
        room[:] = b"abc"
    with pytest.raises(ValueError, match="released"):
        room[0] = 1
    with pytest.raises(ZeroDivisionError), sender.reserve(5) as room:
        raise ZeroDivisionError
    sender.send(b"next")
    with pytest.raises(ZeroDivisionError), receiver.peek() as message:
        raise ZeroDivisionError
    with receiver.peek() as message:
        assert bytes(message) == b"abc"
        assert message.readonly
    assert receiver.recv(timeout=0) == b"next"


def test_closing(make: Make) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    sender.send(b"last")
    sender.close()
    sender.close()
    assert region.state("c", role="send") == "closed"
    assert receiver.recv() == b"last"
    for _ in range(2):
        with pytest.raises(shm.ChannelClosed):
            receiver.recv()
    with pytest.raises(shm.ShmError, match="this end is closed"):
        sender.send(b"x")
    # Another takes the place.
    with region.sender("c") as again:
        again.send(b"more")
        assert receiver.recv(timeout=1) == b"more"
        receiver.close()
        with pytest.raises(shm.ChannelClosed):
            again.send(b"x")


def test_ends_are_exclusive(make: Make) -> None:
    region = make(SMALL, shm.ChannelSpec("m", kind="mpsc", lanes=2))
    sender = region.sender("c")
    with pytest.raises(shm.ShmError, match="taken"):
        region.sender("c")
    sender.close()
    region.sender("c").close()
    assert [region.sender("m").lane for _ in range(2)] == [0, 1]
    with pytest.raises(shm.ShmError, match="all 2 lanes"):
        region.sender("m")


def test_a_second_thread_is_told(make: Make, until: Callable[..., None]) -> None:
    region = make(SMALL)
    receiver, sender = region.receiver("c"), region.sender("c")
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(receiver.recv(timeout=10)))
    thread.start()
    until(lambda: receiver.sleeps)
    with pytest.raises(shm.ShmError, match="another thread"):
        receiver.recv()
    sender.send(b"x")
    thread.join()
    assert got == [b"x"]


def test_closing_wakes_a_waiting_thread(make: Make, until: Callable[..., None]) -> None:
    region = make(SMALL)
    receiver = region.receiver("c")
    caught: list[Exception] = []

    def wait() -> None:
        try:
            receiver.recv(timeout=10)
        except shm.ShmError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: receiver.sleeps)
    region.close()
    thread.join(timeout=5)
    assert "this end is closed" in str(caught[0])


@pytest.mark.parametrize("spin_ns", [0, shm.SPIN_ALWAYS])
def test_signals_interrupt_a_wait(make: Make, spin_ns: int) -> None:
    region = make(SMALL)
    receiver = region.receiver("c")
    receiver.spin_ns = spin_ns

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise InterruptedError("the signal")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptedError, match="the signal"):
            receiver.recv(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_signals_do_not_lengthen_a_wait(make: Make) -> None:
    region = make(SMALL)
    receiver = region.receiver("c")
    hits: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: hits.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        start = time.monotonic()
        with pytest.raises(shm.ChannelTimeout):
            receiver.recv(timeout=0.3)
        assert time.monotonic() - start >= 0.29
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits


def test_objects(make: Make) -> None:
    region = make(SMALL)
    sender, receiver = region.sender("c"), region.receiver("c")
    value = {"n": 1, "list": [1.5, None, True], 7: b"bytes", "text": "ä"}
    sender.send_object(value)
    assert receiver.recv_object(timeout=0) == value
    sender.send(b"\xc1 no msgpack")
    with pytest.raises(shm.RingError, match="field object"):
        receiver.recv_object(timeout=0)


def test_mpsc(make: Make) -> None:
    region = make(shm.ChannelSpec("m", kind="mpsc", size=1024, lanes=4))
    receiver = region.receiver("m")
    senders = [region.sender("m") for _ in range(3)]
    for number in range(9):
        senders[number % 3].send(b"%d" % number, timeout=0)
    got = []
    for _ in range(9):
        message = receiver.recv(timeout=0)
        got.append((receiver.sender_lane, int(message)))
    assert [number for lane, number in got if lane == 1] == [1, 4, 7]
    assert sorted(number for _, number in got) == list(range(9))
    for sender in senders:
        sender.close()
    with pytest.raises(shm.ChannelTimeout):  # The fourth may still come.
        receiver.recv(timeout=0.01)
    region.sender("m", lane=3).close()
    with pytest.raises(shm.ChannelClosed):
        receiver.recv()


def test_a_busy_lane_holds_up_nobody(make: Make) -> None:
    region = make(shm.ChannelSpec("m", kind="mpsc", size=4096, lanes=2))
    receiver, busy, calm = region.receiver("m"), region.sender("m"), region.sender("m")
    for _ in range(40):
        busy.send(b"busy", timeout=0)
    calm.send(b"calm", timeout=0)
    assert b"calm" in [receiver.recv(timeout=0) for _ in range(2)]


def test_broadcast(make: Make) -> None:
    region = make(shm.ChannelSpec("b", kind="broadcast", size=1024))
    early, sender, late = region.receiver("b"), region.sender("b"), region.receiver("b")
    for number in range(5):
        sender.send(b"%d" % number)
    assert [early.recv(timeout=0) for _ in range(5)] == [b"%d" % n for n in range(5)]
    with pytest.raises(shm.ChannelTimeout):
        early.recv(timeout=0)
    for number in range(5, 500):
        sender.send(b"%d" % number)
    assert late.recv(timeout=0) == b"499"
    assert late.lost == 499
    assert early.recv(timeout=0) == b"499"
    assert early.lost == 494
    newest = region.receiver("b")
    assert newest.recv(timeout=0) == b"499"
    assert newest.lost == 0
    sender.close()
    with pytest.raises(shm.ChannelClosed):
        early.recv()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=150))
def test_broadcast_counts_what_is_lost(name: str, actions: list[tuple[int, bool]]) -> None:
    with shm.Region.create(name, channels=[shm.ChannelSpec("b", kind="broadcast", size=1024)], serve=False) as region:
        sender, receiver = region.sender("b"), region.receiver("b")
        got, last = 0, -1
        for number, (size, read) in enumerate(actions):
            sender.send(number.to_bytes(4, "little") + bytes(size))
            if not read:
                continue
            message = receiver.recv(timeout=0)
            found = int.from_bytes(message[:4], "little")
            assert last < found <= number
            assert len(message) == 4 + actions[found][0]
            last, got = found, got + 1
            assert receiver.lost == found + 1 - got


def test_a_reader_that_cannot_write(make: Make, name: str) -> None:
    region = make(
        shm.ChannelSpec("quiet", kind="broadcast"),
        shm.ChannelSpec("loud", kind="broadcast", always_ring=True),
        serve=True,
    )
    with shm.Region.open(name, readonly=True) as joined:
        for channel in ("quiet", "loud"):
            sender, receiver = region.sender(channel), joined.receiver(channel)
            timer = threading.Timer(0.05, sender.send, [b"late"])
            timer.start()
            assert receiver.recv(timeout=10) == b"late"
            assert receiver.sleeps
            timer.join()


def test_barrier(make: Make) -> None:
    region = make(shm.ChannelSpec("all", kind="barrier", lanes=4))
    parties = [region.barrier("all") for _ in range(4)]
    arrived: list[int] = []
    wrong: list[tuple[int, int]] = []

    def meet(number: int) -> None:
        for turn in range(200):
            arrived.append(number)
            parties[number].wait(timeout=10)
            if len(arrived) < 4 * (turn + 1):
                wrong.append((number, turn))

    threads = [threading.Thread(target=meet, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(arrived) == 800
    assert wrong == []
    assert sum(party.late for party in parties) == 0


def test_a_barrier_left_early_is_joined_again(make: Make) -> None:
    region = make(shm.ChannelSpec("all", kind="barrier", lanes=2))
    one, two = region.barrier("all"), region.barrier("all")
    with pytest.raises(shm.ChannelTimeout):
        one.wait(timeout=0.01)
    with pytest.raises(shm.ChannelTimeout):
        one.wait(timeout=0)
    two.wait(timeout=0)  # The other has arrived, and this was the last.
    one.wait(timeout=0)
    with pytest.raises(shm.ChannelTimeout):
        one.wait(timeout=0)


def test_a_party_that_leaves(make: Make) -> None:
    region = make(shm.ChannelSpec("all", kind="barrier", lanes=2))
    one, two = region.barrier("all"), region.barrier("all")
    two.close()
    with pytest.raises(shm.ChannelClosed):
        one.wait(timeout=10)
    region.mark_gone("all", role="join", lane=1)  # It had closed; that stands.
    with pytest.raises(shm.ChannelClosed):
        one.wait(timeout=10)
    region.barrier("all", lane=1)
    region.mark_gone("all", role="join", lane=1)
    with pytest.raises(shm.PeerGone):
        one.wait(timeout=10)


def test_requests(make: Make) -> None:
    region = make(
        shm.ChannelSpec("ask", kind="mpsc", lanes=2), shm.ChannelSpec("to-0"), shm.ChannelSpec("to-1", max_message=64)
    )
    questions = region.receiver("ask")
    replier = shm.Replier(questions, {0: region.sender("to-0"), 1: region.sender("to-1")})
    askers = [region.sender("ask", lane=lane) for lane in range(2)]
    requesters = [shm.Requester(askers[lane], region.receiver(f"to-{lane}")) for lane in range(2)]

    def handle(question: object) -> object:
        if question == "fail":
            raise LookupError("nothing there")
        return b"x" * 100 if question == "long" else [question, question]

    with pytest.raises(shm.ChannelTimeout):  # Nobody serves yet; the answer that comes later is not the next one's.
        requesters[0].call("late", timeout=0.01)
    server = threading.Thread(target=replier.serve, args=(handle,))
    server.start()
    for number in range(100):
        assert requesters[number % 2].call(number, timeout=5) == [number, number]
    with pytest.raises(shm.RequestFailed, match="LookupError: nothing there"):
        requesters[0].call("fail", timeout=5)
    with pytest.raises(shm.RequestFailed, match="no answer could be sent"):
        requesters[1].call("long", timeout=5)
    for asker in askers:
        asker.close()
    server.join(timeout=5)
    assert not server.is_alive()
