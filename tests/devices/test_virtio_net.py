"""virtio-net: what a driver finds, frames through a back end, one that goes and comes, one that breaks the rules."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vhost_backend import (
    ALL,
    CSUM,
    EVENT_IDX,
    HOST_TSO4,
    MQ,
    NAMES,
    P_MQ,
    P_REPLY_ACK,
    PROTOCOL,
    VERSION_1,
    Answer,
    Backend,
    honest,
    socket_folder,
)
from virtio_driver import DATA, GIB, ISR, LOW, ROW, Driver, access, messages, until

from hostd.boot.address_map import Span
from hostd.devices._devices import lib
from hostd.devices.machine import DeviceError, Machine
from hostd.devices.virtio import Net, add_net
from hostd.devices.virtio import net as net_module
from hostd.memory import Anonymous, RamFile, SlotTable

MTU_FEATURE, MAC_FEATURE, STATUS_FEATURE, CTRL_VQ = 3, 5, 16, 17
OWN = 1 << MTU_FEATURE | 1 << MAC_FEATURE | 1 << STATUS_FEATURE
READY, BROKEN = 0xF, 0x4F
MAC = "02:00:00:00:00:0a"
FAR = 4 * GIB
"""a row of memory that is the guest's alone"""
ROUTE, IRQFD = 3, 4
"""kinds of record (interrupts.h)"""


class Card:
    """A machine with one network card, and its driver."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.path = str(folder / "port.sock")
        self.ram = stack.enter_context(RamFile(LOW))
        self.table = stack.enter_context(SlotTable(None))
        for gpa, size in ((0, ROW), (ROW, LOW - ROW)):
            self.table.add(gpa, size, self.ram.at(gpa), name=f"ram.{gpa}")
        self.table.add(FAR, 1 << 16, Anonymous(), name="own")
        self.machine = stack.enter_context(Machine(None, self.table, Span(64 * GIB, 128 * GIB)))
        self._stack = stack
        self._place = 0

    def back_end(self, **options: Any) -> Backend:
        backend = Backend(self.path, **options)
        self._stack.callback(backend.stop)
        return backend.start()

    def add(self, **options: Any) -> Net:
        self.net = add_net(self.machine, self.table, self.path, **{"mac": MAC, **options})
        self.net.c.front.patience_ms, self.net.c.front.rest_ms = 5000, 10
        self.driver = Driver(self.machine, self.table, self.net.slot)
        return self.net

    def again(self, backend: Backend) -> None:
        """The back end mends its ways: now it works."""
        backend.answer = honest
        lib.virtio_net_connect(self.net.c, 5000)
        self.open()
        self.exchange(backend)

    def open(self, features: int = ~0, *, size: int = 16, running: bool = True) -> None:
        assert self.driver.open(features, size=size) == READY
        if running:
            self.wait("running")

    @property
    def state(self) -> Any:
        return self.net.describe()["state"]

    def wait(self, state: str) -> None:
        until(self.driver, lambda: self.state == state)

    def room(self, size: int = 2048) -> int:
        """Return where a buffer may be."""
        at = DATA + self._place % 0x20000
        self._place += 2048
        assert size <= 2048
        return at

    def send(self, frame: bytes, queue: int = 1, *, kick: bool = True) -> None:
        at = self.room()
        self.table.write(at, bytes(12) + frame)
        self.driver.post(queue, (at, 12, False), (at + 12, len(frame), False))
        if kick:
            self.driver.kick(queue)

    def offer(self, queue: int = 0, count: int = 1) -> list[int]:
        """Give the device buffers for frames; return their addresses."""
        places = [self.room() for _ in range(count)]
        for at in places:
            self.driver.post(queue, (at, 2048, True))
        self.driver.kick(queue)
        return places

    def exchange(self, backend: Backend, out: int = 1, into: int = 0) -> None:
        """A frame each way."""
        before = len(backend.sent)
        self.send(b"out" * 20, out)
        until(self.driver, lambda: len(backend.sent) > before)
        assert backend.sent[-1] == (out, bytes(12) + b"out" * 20)
        [place] = self.offer(into)
        backend.deliver(b"in" * 30, into)
        used: list[tuple[int, int]] = []
        until(self.driver, lambda: used.extend(self.driver.used(into)) or used)
        assert used[-1][1] == 72
        assert self.table.read(place, 72) == bytes(12) + b"in" * 30

    def command(self, queue: int, data: bytes, answer: int = 1) -> int:
        """Give the control queue a command; return its answer."""
        self.table.write(0x38000, data)
        self.table.write(0x39000, b"\x55")
        self.driver.ask(queue, (0x38000, len(data), False), (0x39000, answer, True))
        return self.table.read(0x39000, 1)[0]


@pytest.fixture
def card() -> Iterator[Card]:
    with socket_folder() as folder, contextlib.ExitStack() as stack:
        yield Card(folder, stack)


# --- what a driver finds ---


def test_configuration(card: Card) -> None:
    card.back_end()
    card.add(mtu=9000, queues=2)
    assert card.driver.config(0, 4) == 0x1041_1AF4
    assert card.driver.config(8, 4) == 0x020000_01
    config = bytes(card.driver.device(offset, 1) for offset in range(12))
    assert config[:6].hex(":") == MAC
    assert struct.unpack("<HHH", config[6:]) == (1, 2, 9000)
    card.driver.device(0, 4, 0)
    assert card.driver.device(0, 1) == 2, "the address is not the driver's to write"
    assert card.driver.common(18, 2) == 5


def test_features_are_those_of_both(card: Card) -> None:
    card.back_end(features=ALL & ~(1 << EVENT_IDX | 1 << HOST_TSO4 | 1 << MQ))
    card.add(queues=2)
    assert card.driver.offered == OWN | ALL & ~(1 << EVENT_IDX | 1 << HOST_TSO4 | 1 << MQ | 1 << PROTOCOL)
    assert card.driver.device(8, 2) == 1, "without MQ there is one pair"


def test_pairs_are_no_more_than_the_back_end_serves(card: Card) -> None:
    card.back_end(pairs=2)
    card.add(queues=4)
    assert card.driver.device(8, 2) == 2
    assert card.driver.offered >> MQ & 1
    assert card.driver.offered >> CTRL_VQ & 1
    card.open()
    # The control queue lies behind the pairs that there are.
    assert card.command(4, struct.pack("<BBH", 4, 0, 2)) == 0


def test_without_a_back_end_likely_features_are_offered(card: Card) -> None:
    card.add()
    assert card.state == "away"
    assert card.driver.offered == OWN | ALL & ~(1 << MQ | 1 << PROTOCOL)
    card.open(running=False)
    backend = card.back_end()
    card.wait("running")
    card.exchange(backend)


def test_a_back_end_that_comes_before_the_driver_is_asked(card: Card) -> None:
    card.add()
    card.back_end(features=ALL & ~(1 << CSUM))
    card.wait("ready")
    assert not card.driver.offered >> CSUM & 1


def test_features_stay_while_a_driver_reads_them(card: Card) -> None:
    card.add()
    before = card.driver.offered
    card.driver.status = 3
    card.back_end(features=ALL & ~(1 << CSUM))
    card.wait("ready")
    assert card.driver.offered == before
    card.driver.status = 0
    assert card.driver.offered != before or card.driver.open() == READY
    card.driver.open(size=16)
    card.wait("running")


# --- frames ---


@pytest.mark.parametrize("without", [0, 1 << P_REPLY_ACK, 1 << P_REPLY_ACK | 1 << P_MQ])
def test_frames_both_ways(card: Card, without: int) -> None:
    backend = card.back_end(protocol=25 & ~without)
    card.add()
    card.open()
    for _ in range(40):
        card.exchange(backend)


def test_a_back_end_without_protocol_features(card: Card) -> None:
    backend = card.back_end(features=ALL & ~(1 << PROTOCOL))
    card.add(queues=4)
    card.open()
    card.exchange(backend)
    assert not backend.count("SET_VRING_ENABLE")
    assert card.driver.device(8, 2) == 1


def test_the_memory_that_is_told(card: Card) -> None:
    backend = card.back_end()
    card.add()
    card.open()
    [region] = backend.regions
    assert (region.gpa, region.size) == (0, LOW)  # Both rows of it, and not the guest's own.
    assert all(abs(region.uva - row.hva) > LOW for row in card.table)
    card.table.write(0x2FFF8, b"all of it")
    assert backend.read(0x2FFF8, 9) == b"all of it"
    assert card.net.describe()["shared"] == LOW


def test_a_back_end_cannot_cut_the_memory(card: Card) -> None:
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(card.ram.descriptor, 4096)


def test_mtu_and_queues_are_told(card: Card) -> None:
    backend = card.back_end()
    card.add(mtu=4000)
    card.open(size=32)
    assert backend.told("NET_SET_MTU") == [(4000,)]
    assert backend.told("SET_VRING_NUM") == [(0, 32), (1, 32)]
    assert backend.told("SET_VRING_BASE") == [(0, 0), (1, 0)]
    assert backend.told("SET_VRING_ENABLE") == [(0, 1), (1, 1)]
    for index, flags, desc, used, avail, log in backend.told("SET_VRING_ADDR"):
        queue = card.driver.queues[index]
        uva = backend.regions[0].uva
        assert (flags, log) == (0, 0)
        assert (desc - uva, used - uva, avail - uva) == (queue.desc, queue.used, queue.avail)
    accepted = card.driver.features
    assert backend.told("SET_FEATURES") == [(accepted & ~OWN | 1 << PROTOCOL,)]


# --- the control queue ---


def test_pairs_are_switched_on(card: Card) -> None:
    backend = card.back_end()
    card.add(queues=4)
    card.open()
    card.exchange(backend)
    assert [on for _, on in backend.told("SET_VRING_ENABLE")] == [1, 1]
    assert card.command(8, struct.pack("<BBH", 4, 0, 3)) == 0
    until(card.driver, lambda: backend.count("SET_VRING_ENABLE") == 6)
    card.exchange(backend, 5, 4)
    assert card.command(8, struct.pack("<BBH", 4, 0, 2)) == 0
    until(card.driver, lambda: backend.count("SET_VRING_ENABLE") == 8)
    assert backend.told("SET_VRING_ENABLE")[6:] == [(4, 0), (5, 0)]
    assert card.net.describe()["active_pairs"] == 2


def test_commands_that_cannot_be(card: Card) -> None:
    card.back_end()
    card.add(queues=2)
    card.open()
    for data in (
        b"",
        b"\4",
        b"\4\0",
        b"\4\0\1",
        struct.pack("<BBH", 4, 0, 0),
        struct.pack("<BBH", 4, 0, 3),
        b"\1\0" * 9,
    ):
        assert card.command(4, data or b"\0") == 1, data
    assert card.net.describe()["refused"] == 7
    assert card.driver.status == READY
    card.driver.post(4, (0x38000, 4, False))  # No room for the answer.
    card.driver.kick(4)
    until(card.driver, lambda: card.driver.status == BROKEN)
    assert card.state == "ready"


def test_without_mq_the_control_queue_is_the_third(card: Card) -> None:
    backend = card.back_end()
    card.add(queues=4)
    card.open(~(1 << MQ))
    assert card.command(2, struct.pack("<BBH", 4, 0, 1)) == 1
    card.exchange(backend)
    assert {index for index, *_ in backend.told("SET_VRING_NUM")} == {0, 1}


# --- interrupts ---


def enable_msix(driver: Driver, vectors: int) -> None:
    table = driver.config(0x14, 4) & ~0xF
    for vector in range(vectors):
        for offset, value in ((0, 0xFEE00000), (4, 0), (8, 0x4000 + vector), (12, 0)):
            access(driver.machine, table + 16 * vector + offset, 4, value)
    driver.config(driver.msix + 2, 2, 0x8000)


def attached(machine: Machine) -> dict[int, bool]:
    """Return the GSIs that eventfds raise, and what was last done to each: True for attached."""
    recorder = machine.c.recorder
    records = (recorder.records[i] for i in range(recorder.count))
    return {record.number: bool(record.on) for record in records if record.kind == IRQFD}


def test_interrupts_without_msix(card: Card) -> None:
    backend = card.back_end()
    card.add()
    card.open()
    card.exchange(backend)
    until(card.driver, lambda: ("line", 16 + card.net.slot % 8, 1) in messages(card.machine))
    assert not attached(card.machine)


def test_an_interrupt_goes_past_this_process(card: Card) -> None:
    backend = card.back_end()
    card.add()
    enable_msix(card.driver, 3)
    card.open()
    assert list(attached(card.machine).values()) == [True, True]
    card.exchange(backend)
    assert not messages(card.machine)
    # MSI-X goes: the I/O thread raises what comes then. It comes back: it does not.
    card.driver.config(card.driver.msix + 2, 2, 0)
    assert list(attached(card.machine).values()) == [False, False]
    card.exchange(backend)
    until(card.driver, lambda: any(kind == "line" for kind, _, _ in messages(card.machine)))
    card.driver.config(card.driver.msix + 2, 2, 0x8000)
    assert list(attached(card.machine).values()) == [True, True]
    card.driver.status = 0
    assert list(attached(card.machine).values()) == [False, False]


def test_a_vector_for_all_queues(card: Card) -> None:
    backend = card.back_end()
    card.add()
    enable_msix(card.driver, 3)
    card.open()
    card.driver.common(22, 2, 1)
    card.driver.common(26, 2, 1)  # Both queues have vector 1.
    assert list(attached(card.machine).values()) == [False, False]
    card.exchange(backend)
    until(card.driver, lambda: ("msi", 0xFEE00000, 0x4001) in messages(card.machine))


# --- stopping ---


def test_a_reset_takes_the_queues_back(card: Card) -> None:
    backend = card.back_end()
    card.add()
    for _ in range(3):
        card.open()
        card.exchange(backend)
        card.driver.status = 0
        assert card.driver.status == 0
        assert not backend.rings
        assert card.state == "ready"
    assert backend.told("GET_VRING_BASE") == [(0, 0), (1, 0)] * 3
    assert set(backend.told("SET_VRING_BASE")) == {(0, 0), (1, 0)}
    assert (backend.sessions, backend.count("SET_MEM_TABLE")) == (1, 1)
    assert card.net.describe()["reconnects"] == 0


def test_a_reset_before_the_back_end_is_through(card: Card) -> None:
    backend = card.back_end()
    card.add()
    for features in (~0, ~(1 << CSUM)) * 10:
        card.open(features, running=False)
        card.driver.serve()
    card.wait("running")
    card.exchange(backend)
    assert not backend.negotiated >> CSUM & 1


def test_a_reset_waits_for_no_back_end_that_is_silent(card: Card) -> None:
    backend = card.back_end(answer=lambda _, name, right: b"" if name == "GET_VRING_BASE" else right)
    card.add()
    card.net.c.front.patience_ms = 30  # It may be longer if this process has to wait.
    card.open()
    card.driver.status = 0
    assert card.driver.status == 0
    assert card.state == "away"
    assert card.net.describe()["reason"] == "GET_VRING_BASE: the back end didn't answer within 30 ms"
    card.net.c.front.patience_ms = 5000
    card.again(backend)


def test_rings_that_cannot_be_shared(card: Card) -> None:
    card.back_end()
    card.add()
    assert card.driver.open(start=False) == 0xB
    queue = card.driver.queues[0]
    assert queue.desc < LOW
    card.driver.open(start=False)
    card.driver.status = 0
    card.driver.status = 3
    card.driver.common(8, 4, 1)
    card.driver.common(12, 4, 1)  # VERSION_1 alone.
    card.driver.status = 0xB
    card.driver.common(22, 2, 0)
    for offset, address in ((32, FAR), (40, FAR + 0x1000), (48, FAR + 0x2000)):
        card.driver.common(offset, 4, address & 0xFFFFFFFF)
        card.driver.common(offset + 4, 4, address >> 32)
    card.driver.common(28, 2, 1)
    card.driver.status = READY
    assert card.driver.status == BROKEN
    assert card.net.describe()["broken"] == "rings are outside the guest's memory, or not aligned"


# --- a back end that goes and comes ---


def test_a_back_end_that_dies_and_comes_back(card: Card) -> None:
    backend = card.back_end()
    card.add()
    card.open()
    for turn in range(3):
        card.exchange(backend)
        used = [struct.unpack("<H", card.table.read(queue.used + 2, 2))[0] for queue in card.driver.queues]
        backend.stop()
        until(card.driver, lambda: card.state == "away")
        access(card.machine, card.driver.at[ISR][0], 1)
        before = len(messages(card.machine))
        card.send(b"while nobody listens")  # It waits in the ring.
        card.driver.serve()
        assert card.driver.status == READY
        backend.messages.clear()
        backend.silent_calls = True  # What the one before had no time to call for, the device does.
        backend.start()
        card.wait("running")
        until(card.driver, lambda before=before: len(messages(card.machine)) > before)
        backend.silent_calls = False
        assert sorted(backend.told("SET_VRING_BASE")) == [(0, used[0]), (1, used[1])]
        until(card.driver, lambda: backend.sent[-1][1].endswith(b"while nobody listens"))
        card.exchange(backend)
        assert card.driver.device(6, 2) == 1, "the link stays up"
        seen = card.net.describe()
        assert (seen["reconnects"], seen["lost"], seen["failures"]) == (turn + 1, turn + 1, 0)
    assert card.net.describe()["reason"] == "the back end hung up"


def test_what_was_taken_and_not_used_is_sent_again(card: Card) -> None:
    backend = card.back_end()
    card.add()
    card.open()
    with backend.lock:
        backend.rings[1].enabled = False
        card.send(b"taken")
        assert backend._take(backend.rings[1]) is not None
    backend.stop()
    backend.start()
    card.wait("running")
    until(card.driver, lambda: backend.sent and backend.sent[-1][1].endswith(b"taken"))
    [(_, written)] = card.driver.used(1)
    assert written == 0


def test_a_back_end_that_lost_features(card: Card) -> None:
    backend = card.back_end()
    card.add()
    card.open()
    backend.stop()
    backend.features &= ~(1 << CSUM | 1 << HOST_TSO4)
    backend.start()
    until(card.driver, lambda: "lacks" in card.net.describe()["reason"])
    text = "GET_FEATURES: the back end lacks 0x801 of the features that the guest uses"
    assert card.net.describe()["reason"] == text
    assert not backend.count("SET_MEM_TABLE") > 1
    backend.features = ALL
    card.wait("running")
    card.exchange(backend)


def test_a_back_end_that_lost_queues(card: Card) -> None:
    backend = card.back_end()
    card.add(queues=3)
    card.open()
    backend.stop()
    backend.pairs = 2
    backend.start()
    text = "GET_QUEUE_NUM: the back end serves 2 pairs of queues, and the guest uses 3"
    until(card.driver, lambda: card.net.describe()["reason"] == text)


def test_a_back_end_that_finds_the_queues_wrong(card: Card) -> None:
    backend = card.back_end()
    card.add()
    card.open()
    backend.blame(1)
    until(card.driver, lambda: card.net.describe()["queue_errors"] == 1)
    assert card.net.describe()["reason"] == "the back end found the guest's queues wrong, and hung up"
    card.wait("running")
    card.exchange(backend)


# --- a back end that breaks the rules ---


def said(request: int, flags: int = 5, size: int = 8, payload: bytes = bytes(8)) -> bytes:
    return struct.pack("=3I", request, flags, size) + payload


HOSTILE = {
    "another request": (lambda right: said(99), "the answer is to another request"),
    "no reply": (lambda right: right[:4] + struct.pack("=I", 1) + right[8:], "the answer's flags are wrong"),
    "another version": (lambda right: right[:4] + struct.pack("=I", 6) + right[8:], "the answer's flags are wrong"),
    "4 GiB": (lambda right: right[:8] + b"\xff" * 4 + right[12:], "the answer's size is wrong"),
    "nothing": (lambda right: right[:8] + bytes(4), "the answer's size is wrong"),
}
HALF = {"a part": lambda right: right[:15], "silence": lambda right: b""}


@pytest.mark.parametrize("name", ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "NET_SET_MTU", "SET_OWNER"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_answers_that_cannot_be(card: Card, name: str, kind: str) -> None:
    change, reason = HOSTILE[kind]
    backend = card.back_end(answer=lambda _, request, right: change(right) if request == name else right)
    card.add()  # It waits for the answers.
    assert card.state == "away"
    assert card.net.describe()["reason"] == f"{name}: {reason}"
    card.again(backend)


@pytest.mark.parametrize("kind", HALF)
def test_answers_that_do_not_come(card: Card, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_module, "PATIENCE_MS", 20)
    backend = card.back_end(answer=lambda _, __, right: HALF[kind](right))
    card.add()
    assert card.state == "away"
    assert card.net.describe()["reason"] == "GET_FEATURES: the back end didn't answer within 20 ms"
    card.again(backend)


@pytest.mark.parametrize("name", sorted(set(NAMES.values())))
def test_hanging_up_at_any_message(card: Card, name: str) -> None:
    backend = card.back_end(answer=lambda _, request, right: None if request == name else right)
    card.add()
    card.open(running=False)
    if name == "GET_VRING_BASE":
        card.wait("running")
        card.driver.status = 0
    until(card.driver, lambda: card.net.describe()["lost"] > 0)
    card.again(backend)


@pytest.mark.parametrize(
    "name", ["SET_FEATURES", "SET_MEM_TABLE", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_ENABLE"]
)
def test_a_refusal(card: Card, name: str) -> None:
    backend = card.back_end(
        answer=lambda _, request, right: right[:12] + b"\7" + right[13:] if request == name else right
    )
    card.add()
    card.open(running=False)
    until(card.driver, lambda: card.net.describe()["failures"] > 0)
    assert card.net.describe()["reason"] == f"{name}: the back end refused it (0x7)"
    backend.answer = honest
    card.wait("running")
    card.exchange(backend)


def test_words_that_nobody_asked_for(card: Card) -> None:
    backend = card.back_end()
    card.add()
    card.open()
    assert backend.connection is not None
    backend.connection.send(said(1))
    until(card.driver, lambda: card.net.describe()["failures"] == 1)
    assert card.net.describe()["reason"] == "connection: the back end spoke without being asked"
    card.wait("running")


def test_an_answer_of_another_queue(card: Card) -> None:
    def other(_: Backend, name: str, right: bytes) -> bytes:
        return right[:12] + struct.pack("=I", 9) + right[16:] if name == "GET_VRING_BASE" else right

    card.back_end(answer=other)
    card.add()
    card.open()
    card.driver.status = 0
    assert card.net.describe()["reason"] == "GET_VRING_BASE: the answer is of another queue"


@pytest.mark.parametrize(
    ("what", "value", "reason"),
    [
        (
            "features",
            ALL & ~(1 << VERSION_1),
            "GET_FEATURES: the back end lacks VERSION_1: it knows no queues of today",
        ),
        ("pairs", 0, "GET_QUEUE_NUM: the back end has no queues"),
    ],
)
def test_a_back_end_of_no_use(card: Card, what: str, value: int, reason: str) -> None:
    card.back_end(**{what: value})
    card.add()
    assert card.net.describe()["reason"] == reason


def test_descriptors_of_a_back_end_are_closed(card: Card) -> None:
    import socket

    def gift(backend: Backend, _: str, right: bytes) -> bytes:
        assert backend.connection is not None
        if right:
            socket.send_fds(backend.connection, [right], [0, 1, 2])
        return b""

    card.back_end(answer=gift)
    card.add()
    card.open()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        card.driver.status = 0
        card.open()
    assert len(os.listdir("/proc/self/fd")) == before


LIES = st.one_of(
    st.just(honest),
    st.just(honest),
    st.just(lambda _, __, ___: None),
    st.binary(max_size=40).map(lambda lie: lambda _, __, ___: lie),
    st.binary(max_size=24).map(lambda more: lambda _, __, right: right + more),
    st.tuples(st.integers(0, 19), st.integers(1, 255)).map(lambda bit: lambda _, __, right: changed(right, *bit)),
)


def changed(right: bytes, at: int, bits: int) -> bytes:
    """Return it with some bits of one byte changed."""
    return right and right[:at] + bytes([right[at] ^ bits]) + right[at + 1 :]


@settings(max_examples=40, deadline=None)
@given(st.lists(LIES, min_size=1, max_size=60), st.integers(1, 4))
def test_any_answers(lies: list[Answer], opens: int) -> None:
    """Whatever a back end says, the device lives; with a good one it works."""
    left = iter(lies)

    def next_lie(backend: Backend, name: str, right: bytes) -> bytes | None:
        return next(left, honest)(backend, name, right)

    with socket_folder() as folder, contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(net_module, "PATIENCE_MS", 5)
        card = Card(folder, stack)
        backend = card.back_end(answer=next_lie)
        card.add(queues=2)
        card.net.c.front.patience_ms = 5
        for _ in range(opens):
            assert card.driver.open(size=16) & READY == READY
            for _ in range(10):
                card.driver.serve()
            card.driver.status = 0
            assert card.driver.status == 0
        backend.stop()
        until(card.driver, lambda: card.state == "away")
        backend.start()
        card.net.c.front.patience_ms = 5000
        card.again(backend)


# --- what is asked for ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mac": "02:00:00:00:00"}, "net lan: '02:00:00:00:00' is no address of one card, as 02:00:00:00:00:01 is"),
        (
            {"mac": "01:00:00:00:00:00"},
            "net lan: '01:00:00:00:00:00' is no address of one card, as 02:00:00:00:00:01 is",
        ),
        (
            {"mac": "00:00:00:00:00:00"},
            "net lan: '00:00:00:00:00:00' is no address of one card, as 02:00:00:00:00:01 is",
        ),
        ({"mtu": 67}, "net lan: its MTU is 67; it can be 68 to 65535 bytes"),
        ({"mtu": 65536}, "net lan: its MTU is 65536; it can be 68 to 65535 bytes"),
        ({"queues": 0}, "net lan: it has 0 pairs of queues; it can have 1 to 8"),
        ({"queues": 9}, "net lan: it has 9 pairs of queues; it can have 1 to 8"),
    ],
)
def test_what_cannot_be(card: Card, options: dict[str, Any], text: str) -> None:
    with pytest.raises(DeviceError) as caught:
        card.add(name="lan", **options)
    assert str(caught.value) == text
    assert not card.machine.faces


def test_a_path_that_is_too_long(card: Card) -> None:
    card.path = "/" + "x" * 107
    with pytest.raises(DeviceError, match=r"is longer than a socket's path can be \(107 bytes\)"):
        card.add()


def test_memory_that_cannot_be_shared() -> None:
    with SlotTable(None) as table:
        table.add(0, 1 << 16, Anonymous(), name="ram")
        with Machine(None, table, Span(64 * GIB, 128 * GIB)) as machine, pytest.raises(DeviceError, match="its own"):
            add_net(machine, table, "/nowhere", mac=MAC)


def test_a_path_that_is_no_socket(card: Card) -> None:
    Path(card.path).write_text("")
    card.add()
    assert card.state == "away"
    Path(card.path).unlink()
    card.driver.open(size=16)
    backend = card.back_end()
    card.wait("running")
    card.exchange(backend)
