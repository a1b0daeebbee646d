"""Virtqueues of vhost-user ports: chains of every shape, calls and kicks, and drivers that break the rules."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vhost_front import (
    EVENT_IDX,
    IN_ORDER,
    INDIRECT,
    MRG_RXBUF,
    NEXT,
    NO_INTERRUPT,
    PLAIN,
    TABLE,
    WRITE,
    Nic,
    Queue,
    Region,
    wait_until,
)

FEATURES = [
    PLAIN,
    PLAIN | MRG_RXBUF,
    PLAIN | MRG_RXBUF | EVENT_IDX | INDIRECT,
    PLAIN | INDIRECT,
    PLAIN | EVENT_IDX | IN_ORDER,
    MRG_RXBUF,
    0,
]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("size", [2, 32])
def test_frames_in_both_directions(lan, features, size):
    """More than the rings have room for, with sizes from the least to the most."""
    a, b = (lan.nic(name, features=features, size=size).start(fill=size) for name in "ab")
    for number in range(min(3 * size, 100)):
        frame = a.frame(b.mac, os.urandom(number * 7 % 1501))
        a.send(frame)
        assert b.wait() == [(bytes(10) + b"\1\0" if b.header == 12 else bytes(10), frame)]
        a.tx().taken()
        back = b.frame(a.mac, os.urandom(number * 11 % 1501))
        b.send(back)
        assert a.wait()[0][1] == back
        b.tx().taken()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_chains_of_every_shape(lan_kept: tuple[Nic, Nic], data: st.DataObject) -> None:
    """However a driver cuts header and frame, and whether or not in an indirect table."""
    a, b = lan_kept
    frame = a.frame(b.mac, data.draw(st.binary(max_size=1500)))
    places = st.integers(1, a.header + len(frame) - 1)
    cuts = sorted(data.draw(st.sets(places, max_size=30)))
    indirect = data.draw(st.booleans())
    a.send(frame, cuts=cuts, indirect=indirect)
    assert b.wait() == [(bytes(10) + b"\1\0", frame)]
    assert wait_until(a.tx().taken)[-1][1] == 0


@pytest.fixture
def lan_kept(lan):
    return lan.pair(features=PLAIN | MRG_RXBUF | INDIRECT)


def test_a_frame_in_very_many_pieces(lan):
    """More than a frame of the switch can have; several such in one batch, too."""
    a, b = lan.pair(features=PLAIN | MRG_RXBUF | INDIRECT)
    frames = [a.frame(b.mac, os.urandom(900)) for _ in range(6)]
    for number, frame in enumerate(frames):
        cuts = range(3, 12 + len(frame), 16 + number)
        a.send(frame, cuts=cuts, indirect=number % 2 == 0)
    assert [frame for _, frame in b.wait(6)] == frames


@pytest.mark.parametrize("room", [12, 13, 30, 100, 700, 1526])
def test_frames_in_several_buffers(lan, room):
    """Mergeable receive buffers: the header says how many; none is left unused."""
    a, b = lan.nic("a").start(), lan.nic("b", room=room).start(fill=250)
    for size in (0, 1, 46, 500, 1500):
        frame = a.frame(b.mac, os.urandom(size))
        a.send(frame)
        [(header, got)] = b.wait()
        assert got == frame
        assert struct.unpack_from("<H", header, 10)[0] == -(-(12 + len(frame)) // room)


def test_receive_chains_of_several_descriptors(lan):
    """Without mergeable buffers a driver posts room for the largest frame, in as many pieces as it likes."""
    a = lan.nic("a", features=PLAIN).start()
    b = lan.nic("b", features=PLAIN | INDIRECT).start(fill=0)
    pieces = [12, 14, 1, 100, 1000, 600]
    for table in (None, b.take(16 * len(pieces))):
        segments = [(b.take(size), size) for size in pieces]
        b.rx().post(segments, write=True, table=table)
        frame = a.frame(b.mac, os.urandom(1200))
        a.send(frame)
        [(_, size)] = wait_until(b.rx().taken)
        assert size == 12 + len(frame)
        assert b"".join(b.read(*segment) for segment in segments)[12:size] == frame


def test_a_buffer_that_is_too_small(lan):
    """A driver without mergeable buffers gave less than the frame needs: it is dropped, the buffer stays."""
    a = lan.nic("a", features=PLAIN).start()
    b = lan.nic("b", features=PLAIN, room=600).start()
    a.send(a.frame(b.mac, bytes(1000)))
    wait_until(lambda: lan.drops("b", "unfit") == 1)
    a.send(a.frame(b.mac, bytes(500)))
    assert b.wait()[0][1] == a.frame(b.mac, bytes(500))


def test_a_receiver_without_room(lan):
    """Frames are dropped and counted, whole ones only; what was refused leaves no trace."""
    a, b = lan.nic("a").start(), lan.nic("b", room=400).start(fill=4)
    a.send(a.frame(b.mac, bytes(1000)))
    a.send(a.frame(b.mac, bytes(1000)))
    a.send(a.frame(b.mac, b"small"))
    wait_until(lambda: lan.drops("b", "full") == 1)
    found = b.wait(2)
    assert [len(frame) for _, frame in found] == [1014, 19]


def test_what_is_no_frame(lan):
    """Runts and frames longer than the MTU allows are dropped at their sender; its queue goes on."""
    a, b = lan.pair()
    a.send(b"\2" * 13)
    a.send(b"")
    a.send(a.frame(b.mac, bytes(1505)))
    a.send(a.frame(b.mac, bytes(1504)))  # one VLAN tag is allowed
    assert [len(frame) for _, frame in b.wait()] == [1518]
    assert lan.drops("a", "runt") == 2
    assert lan.drops("a", "oversize") == 1
    wait_until(lambda: a.tx().get(a.tx().used + 2) == 4)


def test_calls(lan):
    """A driver that wants none gets none; one that does gets one a batch."""
    a, b = lan.pair()
    b.rx().calls(), a.tx().calls()
    a.tx().put(a.tx().avail, NO_INTERRUPT)
    a.send(a.frame(b.mac, bytes(50)))
    assert b.rx().called()
    assert b.wait()
    wait_until(a.tx().taken)
    assert not a.tx().calls()
    b.rx().put(b.rx().avail, NO_INTERRUPT)
    b.rx().calls()
    a.send(a.frame(b.mac, bytes(50)))
    assert b.wait()
    assert not b.rx().calls()
    assert lan.info("b").counters.wakes > 0


def test_calls_by_event_index(lan):
    """With EVENT_IDX: when the used index passes the one that the driver named, and only then."""
    a, b = lan.pair(features=PLAIN | MRG_RXBUF | EVENT_IDX)
    queue = b.rx()
    event = queue.avail + 4 + 2 * queue.size
    queue.put(event, 2)
    queue.calls()
    for expected in (False, False, True, False):
        a.send(a.frame(b.mac, bytes(50)))
        assert b.wait()
        time.sleep(0.01)
        assert bool(queue.calls()) == expected


@pytest.mark.parametrize("features", [PLAIN, PLAIN | EVENT_IDX])
def test_kicks_wake_a_switch_that_sleeps(lan, features):
    """It asks for them before it sleeps, and for none while it is awake."""
    a, b = lan.pair(features=features | MRG_RXBUF)
    for number in range(20):
        if not number % 2:
            time.sleep(0.005)
        a.send(a.frame(b.mac, bytes([number]) * 50))
        assert b.wait()[0][1] == a.frame(b.mac, bytes([number]) * 50)


# --- drivers that break the rules ---


def loop(nic: Nic, queue: Queue) -> None:
    flags = NEXT | (WRITE if queue.index % 2 == 0 else 0)
    for number in range(queue.size):
        queue.set_desc(number, nic.take(64), 64, flags, (number + 1) % queue.size)
    queue.offer(0)


def index_jump(nic: Nic, queue: Queue) -> None:
    queue.offer(0, ahead=queue.size + 1)


def index_back(nic: Nic, queue: Queue) -> None:
    queue.offer(0, ahead=-1)


def head_outside(nic: Nic, queue: Queue) -> None:
    queue.offer(queue.size)


def next_outside(nic: Nic, queue: Queue) -> None:
    queue.set_desc(0, nic.take(64), 64, NEXT | (WRITE if queue.index % 2 == 0 else 0), queue.size)
    queue.offer(0)


def address_outside(nic: Nic, queue: Queue) -> None:
    queue.post([(nic.gpa + nic.BYTES, 100)], write=queue.index % 2 == 0)


def address_ends_outside(nic: Nic, queue: Queue) -> None:
    queue.post([(nic.gpa + nic.BYTES - 50, 100)], write=queue.index % 2 == 0)


def address_wraps(nic: Nic, queue: Queue) -> None:
    queue.post([(2**64 - 50, 100)], write=queue.index % 2 == 0)


def length_too_large(nic: Nic, queue: Queue) -> None:
    queue.post([(nic.take(1000), 2**32 - 1)], write=queue.index % 2 == 0)


def length_zero(nic: Nic, queue: Queue) -> None:
    queue.post([(nic.take(100), 0)], write=queue.index % 2 == 0)


def wrong_direction(nic: Nic, queue: Queue) -> None:
    queue.post([(nic.take(100), 100)], write=queue.index % 2 == 1)


def wrong_direction_later(nic: Nic, queue: Queue) -> None:
    flags = WRITE if queue.index % 2 == 0 else 0
    queue.set_desc(0, nic.take(12), 12, NEXT | flags, 1)
    queue.set_desc(1, nic.take(2000), 2000, flags ^ WRITE)
    queue.offer(0)


def indirect(nic: Nic, queue: Queue, address: int, size: int, flags: int = TABLE) -> None:
    queue.set_desc(0, address, size, flags, 1)
    queue.offer(0)


def indirect_outside(nic: Nic, queue: Queue) -> None:
    indirect(nic, queue, nic.gpa + nic.BYTES - 8, 16)


def indirect_of_no_size(nic: Nic, queue: Queue) -> None:
    indirect(nic, queue, nic.take(16), 0)


def indirect_of_odd_size(nic: Nic, queue: Queue) -> None:
    indirect(nic, queue, nic.take(40), 24)


def indirect_with_next(nic: Nic, queue: Queue) -> None:
    indirect(nic, queue, nic.take(16), 16, TABLE | NEXT)


def indirect_in_indirect(nic: Nic, queue: Queue) -> None:
    table = nic.take(16)
    nic.write(table, struct.pack("<QIHH", table, 16, TABLE, 0))
    indirect(nic, queue, table, 16)


def indirect_behind_another(nic: Nic, queue: Queue) -> None:
    queue.set_desc(0, nic.take(64), 64, NEXT | (WRITE if queue.index % 2 == 0 else 0), 1)
    queue.set_desc(1, nic.take(16), 16, TABLE)
    queue.offer(0)


def indirect_loop(nic: Nic, queue: Queue) -> None:
    table = nic.take(16)
    flags = NEXT | (WRITE if queue.index % 2 == 0 else 0)
    nic.write(table, struct.pack("<QIHH", nic.take(16), 1, flags, 0))
    indirect(nic, queue, table, 16)


ANY_QUEUE: list[tuple[Callable[[Nic, Queue], None], str, str]] = [
    (loop, "queue", "loop"),
    (index_jump, "queue", "available index"),
    (index_back, "queue", "available index"),
    (head_outside, "queue", "head"),
    (next_outside, "queue", "next"),
    (address_outside, "address", "address"),
    (address_ends_outside, "address", "address"),
    (address_wraps, "address", "address"),
    (length_zero, "queue", "length"),
    (wrong_direction, "queue", "descriptor to"),
    (wrong_direction_later, "queue", "descriptor to"),
    (indirect_outside, "address", "indirect"),
    (indirect_of_no_size, "queue", "indirect"),
    (indirect_of_odd_size, "queue", "indirect"),
    (indirect_with_next, "queue", "indirect"),
    (indirect_in_indirect, "queue", "indirect"),
    (indirect_behind_another, "queue", "indirect"),
    (indirect_loop, "queue", "loop"),
]


@pytest.mark.parametrize("receive", [False, True], ids=["transmit", "receive"])
@pytest.mark.parametrize(("break_it", "reason", "field"), ANY_QUEUE, ids=lambda value: getattr(value, "__name__", None))
def test_a_queue_that_breaks_the_rules(lan, break_it, reason, field, receive):
    """Its port is closed with the reason; the others go on; a front end that comes again is served."""
    a, b = lan.pair()
    bad = lan.nic("bad", features=PLAIN | MRG_RXBUF | INDIRECT).start(fill=0)
    bad.send(bad.frame(a.mac, b"still good" * 6))
    a.wait()
    queue = bad.rx() if receive else bad.tx()
    break_it(bad, queue)
    if receive:
        a.send(a.frame(bad.mac, bytes(50)))
    else:
        bad.kick(queue)
    wait_until(lambda: lan.info("bad").quarantined)
    info = lan.info("bad")
    assert reason in info.quarantined
    assert field in info.field
    assert bad.link.gone()
    assert os.eventfd_read(queue.err) > 0
    a.send(a.frame(b.mac, b"unharmed" * 8))
    assert b.wait()[-1][1] == a.frame(b.mac, b"unharmed" * 8)
    good = lan.again(bad.path, mac=bad.mac).start()
    wait_until(lambda: not lan.info("bad").quarantined)
    good.send(good.frame(a.mac, b"better" * 10))
    assert a.wait()[-1][1] == good.frame(a.mac, b"better" * 10)


def test_a_length_that_no_memory_has(lan):
    """In a receive queue its address is wrong; a frame of that size is none."""
    a, _ = lan.pair()
    bad = lan.nic("bad").start(fill=0)
    length_too_large(bad, bad.tx())
    bad.kick(bad.tx())
    wait_until(lambda: lan.drops("bad", "oversize") == 1)
    bad.send(bad.frame(a.mac, bytes(50)))
    assert a.wait()
    length_too_large(bad, bad.rx())
    a.send(a.frame(bad.mac, bytes(50)))
    wait_until(lambda: lan.info("bad").quarantined)
    assert "address" in lan.info("bad").field


def test_indirect_descriptors_that_were_not_negotiated(lan):
    bad = lan.nic("bad", features=PLAIN).start()
    bad.send(bytes(60), indirect=True)
    wait_until(lambda: lan.info("bad").quarantined)
    assert "indirect" in lan.info("bad").field


def test_a_receive_buffer_smaller_than_its_header(lan):
    a = lan.nic("a").start()
    bad = lan.nic("bad", room=11).start()
    bad.send(bad.frame(a.mac, bytes(50)))
    a.wait()
    a.send(a.frame(bad.mac, bytes(100)))
    wait_until(lambda: lan.info("bad").quarantined)
    assert "header" in lan.info("bad").field


def test_a_used_ring_that_the_driver_writes(lan):
    """It is the device's; what a driver writes there is its own trouble, and nobody else's."""
    a, b = lan.pair()
    queue = a.tx()
    for value in (0, 0xFFFF, 0x8000):
        queue.put(queue.used + 2, value)
        queue.put(queue.used, value)
        a.send(a.frame(b.mac, bytes(60)))
        queue.ring()
        assert len(b.wait()) == 1
    assert not lan.info("a").quarantined


def test_a_used_index_that_is_wrong_from_the_beginning(lan):
    """Where a queue goes on is said by its used index; one that can't be is seen at the first look."""
    nic = lan.nic("a")
    nic.connect()
    nic.give_memory()
    queue = nic.tx()
    queue.put(queue.used + 2, 1000)
    nic.start_queue(queue)
    nic.enable(queue)
    wait_until(lambda: lan.info("a").quarantined)
    assert "available index" in lan.info("a").field


def test_memory_that_is_cut_short(lan):
    """A file that its owner truncates under the switch: that port is closed, others go on."""
    a, b = lan.pair()
    bad = lan.nic("bad").start()
    other = lan.nic("other").start()
    bad.send(bad.frame(a.mac, b"before" * 10))
    assert a.wait()
    bad.forget_memory()
    os.ftruncate(bad.fd, 0x1000)  # The receive queue's descriptors are left, the transmit queue is gone.
    a.send(a.frame(bad.mac, bytes(100)))
    bad.tx().ring()
    wait_until(lambda: lan.info("bad").quarantined)
    assert lan.info("bad").quarantined == "memory gone"
    a.send(a.frame(b.mac, b"unharmed" * 8))
    assert b.wait()[-1][1] == a.frame(b.mac, b"unharmed" * 8)
    other.send(other.frame(b.mac, b"unharmed" * 8))
    assert b.wait()[-1][1] == other.frame(b.mac, b"unharmed" * 8)


def test_frames_that_lie_in_two_regions(lan):
    """Regions that follow each other in the guest's addresses, in the other order in the file."""
    a, b = lan.nic("a"), lan.nic("b").start()
    a.connect()
    half = a.BYTES // 2
    a.give_memory([Region(0, half, a.uva, 0, a.fd), Region(half, half, a.uva + half, half, a.fd)])
    for queue in a.queues:
        a.start_queue(queue)
        a.enable(queue)
    a.fill(8)
    frame = a.frame(b.mac, os.urandom(1400))
    start = half - 700
    a.write(start, bytes(12) + frame)
    a.tx().post([(start, 12 + len(frame))], write=False)
    a.kick(a.tx())
    assert b.wait()[0][1] == frame
