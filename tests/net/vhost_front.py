"""A vhost-user front end with a virtio-net driver behind it: one that behaves, and that can misbehave.

The guest's memory is a memfd, in which Nic lays out queues and buffers; a test can write anything anywhere.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

VERSION, REPLY, NEED_REPLY = 1, 4, 8
NO_DESCRIPTOR = 0x100

REQUESTS = """
    GET_FEATURES SET_FEATURES SET_OWNER RESET_OWNER SET_MEM_TABLE SET_LOG_BASE SET_LOG_FD SET_VRING_NUM
    SET_VRING_ADDR SET_VRING_BASE GET_VRING_BASE SET_VRING_KICK SET_VRING_CALL SET_VRING_ERR GET_PROTOCOL_FEATURES
    SET_PROTOCOL_FEATURES GET_QUEUE_NUM SET_VRING_ENABLE SEND_RARP NET_SET_MTU
""".split()
NUMBERS = {name: number for number, name in enumerate(REQUESTS, 1)} | {
    "RESET_DEVICE": 34,
    "GET_MAX_MEM_SLOTS": 36,
    "ADD_MEM_REG": 37,
    "REM_MEM_REG": 38,
}

CSUM, GUEST_CSUM, MTU = 1 << 0, 1 << 1, 1 << 3
GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 = 1 << 7, 1 << 8, 1 << 11, 1 << 12
MRG_RXBUF, MQ, IN_ORDER, VERSION_1 = 1 << 15, 1 << 22, 1 << 35, 1 << 32
INDIRECT, EVENT_IDX, PROTOCOL = 1 << 28, 1 << 29, 1 << 30
PLAIN = VERSION_1 | PROTOCOL
P_MQ, P_REPLY_ACK, P_MTU, P_RESET, P_SLOTS = 1 << 0, 1 << 3, 1 << 4, 1 << 13, 1 << 15
P_ALL = P_MQ | P_REPLY_ACK | P_MTU | P_RESET | P_SLOTS

NEXT, WRITE, TABLE = 1, 2, 4
NO_INTERRUPT = NO_NOTIFY = 1
SECONDS = 5.0


class GoneError(Exception):
    """The back end closed the connection."""


def wait_until(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Return what `what` returns as soon as it is true. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)
    return found


@dataclass(frozen=True)
class Region:
    """A part of a file, as the back end is told: addresses and sizes in bytes."""

    gpa: int
    size: int
    uva: int
    offset: int
    fd: int

    def pack(self) -> bytes:
        return struct.pack("=4Q", self.gpa, self.size, self.uva, self.offset)


class Link:
    """The socket to a back end: messages out, replies in."""

    def __init__(self, path: str, seconds: float = SECONDS) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(seconds)
        self.socket.connect(path)

    def close(self) -> None:
        self.socket.close()

    def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([data], rights)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise GoneError from error

    def send(self, request: str | int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> None:
        """Send a message that is not answered."""
        number = NUMBERS[request] if isinstance(request, str) else request
        self.raw(struct.pack("=3I", number, flags, len(payload)) + payload, fds)

    def receive(self) -> tuple[int, int, bytes]:
        """Return request, flags and payload of a reply."""
        number, flags, size = struct.unpack("=3I", self._read(12))
        return number, flags, self._read(size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionResetError as error:
                raise GoneError from error
            if not part:
                raise GoneError
            data += part
        return data

    def ask(self, request: str, payload: bytes = b"") -> bytes:
        """Return the payload of the answer to a request that has one."""
        self.send(request, payload)
        number, flags, answer = self.receive()
        assert (number, flags) == (NUMBERS[request], VERSION | REPLY)
        return answer

    def number(self, request: str) -> int:
        """Return the number that a request is answered with."""
        [number] = struct.unpack("=Q", self.ask(request))
        return int(number)

    def acknowledged(self, request: str, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Return what a request is acknowledged with (0: it was done), as REPLY_ACK has it."""
        self.send(request, payload, fds, VERSION | NEED_REPLY)
        number, flags, answer = self.receive()
        assert (number, flags, len(answer)) == (NUMBERS[request], VERSION | REPLY, 8)
        return int.from_bytes(answer, "little")

    def gone(self) -> bool:
        """Wait for the back end to close the connection: whether it did so, without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def open(self) -> bool:
        """Whether the back end is still there: it answers."""
        try:
            return self.number("GET_FEATURES") > 0
        except GoneError:
            return False


class Queue:
    """A split virtqueue (virtio 1.2, 2.7), the driver's side. Addresses are the guest's; `at` must be a page's."""

    def __init__(self, memory: mmap.mmap, index: int, at: int, size: int) -> None:
        self.memory, self.index, self.size = memory, index, size
        self.words = memoryview(memory).cast("H")
        self.desc, self.avail = at, at + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) // 4 * 4
        self.end = self.used + 6 + 8 * size
        self.next_avail = self.next_used = self.next_desc = 0
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.err = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        self.words.release()
        for fd in (self.kick, self.call, self.err):
            os.close(fd)

    def get(self, at: int, form: str = "<H") -> int:
        """Return a field of the rings."""
        return int(struct.unpack_from(form, self.memory, at)[0])

    def put(self, at: int, value: int) -> None:
        """Set a field of the rings, in one store: pack_into would write zeros first."""
        self.words[at // 2] = value

    def set_desc(self, number: int, address: int, size: int, flags: int = 0, following: int = 0) -> None:
        """Write a descriptor."""
        struct.pack_into("<QIHH", self.memory, self.desc + 16 * number, address, size, flags, following)

    def offer(self, head: int, ahead: int = 1) -> None:
        """Make the chain at `head` available."""
        self.put(self.avail + 4 + 2 * (self.next_avail % self.size), head)
        self.next_avail = (self.next_avail + ahead) & 0xFFFF
        self.put(self.avail + 2, self.next_avail)

    def post(self, segments: Sequence[tuple[int, int]], *, write: bool, table: int | None = None) -> int:
        """Make a chain of (address, size) available, in a table at `table` if one is given. Return its head."""
        head = self.next_desc % self.size
        flags = WRITE if write else 0
        last = len(segments) - 1
        for number, (address, size) in enumerate(segments):
            more = flags | (NEXT if number < last else 0)
            if table is None:
                self.set_desc((head + number) % self.size, address, size, more, (head + number + 1) % self.size)
            else:
                struct.pack_into("<QIHH", self.memory, table + 16 * number, address, size, more, number + 1)
        if table is not None:
            self.set_desc(head, table, 16 * len(segments), TABLE)
        self.next_desc += len(segments) if table is None else 1
        self.offer(head)
        return head

    def taken(self) -> list[tuple[int, int]]:
        """Return what was used since the last look: heads and bytes written."""
        found = []
        while self.next_used != self.get(self.used + 2):
            at = self.used + 4 + 8 * (self.next_used % self.size)
            found.append((self.get(at, "<I"), self.get(at + 4, "<I")))
            self.next_used = (self.next_used + 1) & 0xFFFF
        return found

    def calls(self) -> int:
        """Return how often the back end called since the last look."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0

    def called(self, seconds: float = SECONDS) -> bool:
        """Wait for a call."""
        return bool(select.select([self.call], [], [], seconds)[0])

    def ring(self) -> None:
        """Kick the back end."""
        os.eventfd_write(self.kick, 1)

    @property
    def wants_kick(self) -> bool:
        return not self.get(self.used) & NO_NOTIFY


@dataclass
class Nic:
    """A guest's network card: `pairs` of queues of `size` entries in a memory of 4 MiB; buffers of `room` bytes."""

    path: str
    features: int = PLAIN | MRG_RXBUF
    protocol: int = P_ALL
    pairs: int = 1
    size: int = 256
    room: int = 2048
    mac: bytes = b"\x02\0\0\0\0\1"
    gpa: int = 0
    uva: int = 0x7F00_0000_0000
    link: Link = field(init=False)

    BYTES = 8 << 20
    BUFFERS = 1 << 20

    def __post_init__(self) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.BYTES)
        self.memory = mmap.mmap(self.fd, self.BYTES)
        self.queues = [Queue(self.memory, index, 0x10000 * index, self.size) for index in range(2 * self.pairs)]
        self.header = 12 if self.features & (VERSION_1 | MRG_RXBUF) else 10
        self.frames: list[tuple[bytes, bytes]] = []  # header, frame
        self._free = self.BUFFERS

    def close(self) -> None:
        """Go away."""
        with contextlib.suppress(AttributeError):
            self.link.close()
        self.forget_memory()
        for queue in self.queues:
            queue.close()
        os.close(self.fd)

    def forget_memory(self) -> None:
        """Unmap the guest's own view of its memory."""
        for queue in self.queues:
            queue.words.release()
        self.memory.close()

    def __enter__(self) -> Nic:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def rx(self, pair: int = 0) -> Queue:
        return self.queues[2 * pair]

    def tx(self, pair: int = 0) -> Queue:
        return self.queues[2 * pair + 1]

    # --- the protocol ---

    def regions(self) -> list[Region]:
        """The memory, as one region; others may be set instead."""
        return [Region(self.gpa, self.BYTES, self.uva, 0, self.fd)]

    def connect(self) -> Link:
        """Connect and negotiate; memory and queues are not given yet."""
        self.link = Link(self.path)
        assert self.link.number("GET_FEATURES") & self.features == self.features
        if self.features & PROTOCOL:
            assert self.link.number("GET_PROTOCOL_FEATURES") & self.protocol == self.protocol
            self.link.send("SET_PROTOCOL_FEATURES", struct.pack("=Q", self.protocol))
        self.link.send("SET_OWNER")
        self.link.send("SET_FEATURES", struct.pack("=Q", self.features))
        return self.link

    def give_memory(self, regions: Sequence[Region] | None = None) -> None:
        """Give the memory in one table."""
        regions = self.regions() if regions is None else regions
        payload = struct.pack("=II", len(regions), 0) + b"".join(region.pack() for region in regions)
        self.link.send("SET_MEM_TABLE", payload, [region.fd for region in regions])

    def start_queue(self, queue: Queue, base: int = 0, *, kick: bool = True) -> None:
        """Give a queue, as the index `base` has it."""
        link, index = self.link, queue.index
        link.send("SET_VRING_NUM", struct.pack("=II", index, queue.size))
        link.send("SET_VRING_BASE", struct.pack("=II", index, base))
        link.send("SET_VRING_CALL", struct.pack("=Q", index), [queue.call])
        link.send("SET_VRING_ERR", struct.pack("=Q", index), [queue.err])
        self.set_address(queue)
        if kick:
            link.send("SET_VRING_KICK", struct.pack("=Q", index), [queue.kick])
        else:
            link.send("SET_VRING_KICK", struct.pack("=Q", index | NO_DESCRIPTOR))

    def set_address(self, queue: Queue, flags: int = 0) -> None:
        places = (queue.desc + self.uva, queue.used + self.uva, queue.avail + self.uva, 0)
        self.link.send("SET_VRING_ADDR", struct.pack("=2I4Q", queue.index, flags, *places))

    def enable(self, queue: Queue, on: bool = True) -> None:
        self.link.send("SET_VRING_ENABLE", struct.pack("=II", queue.index, on))

    def stop_queue(self, queue: Queue) -> int:
        """Stop a queue; return the index at which it goes on."""
        index, base = struct.unpack("=II", self.link.ask("GET_VRING_BASE", struct.pack("=II", queue.index, 0)))
        assert index == queue.index
        return int(base)

    def start(self, *, fill: int = 64, kick: bool = True) -> Nic:
        """Connect, give everything, and post `fill` buffers to receive into on each receive queue."""
        self.connect()
        self.give_memory()
        for queue in self.queues:
            self.start_queue(queue, kick=kick)
            if self.features & PROTOCOL:
                self.enable(queue)
        for pair in range(self.pairs):
            self.fill(fill, pair)
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until the back end has done what it was told."""
        self.link.number("GET_FEATURES")

    # --- frames ---

    def take(self, size: int) -> int:
        """Return the guest's address of `size` bytes for a buffer; room that was taken long ago is taken again."""
        if self._free + size > self.BYTES:
            self._free = self.BUFFERS
        at = self._free
        self._free += size
        return self.gpa + at

    def write(self, gpa: int, data: bytes) -> None:
        self.memory[gpa - self.gpa : gpa - self.gpa + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        return self.memory[gpa - self.gpa : gpa - self.gpa + size]

    def fill(self, count: int, pair: int = 0) -> None:
        """Post buffers to receive into."""
        for _ in range(count):
            self.rx(pair).post([(self.take(self.room), self.room)], write=True)

    def send(
        self, frame: bytes, *, header: bytes = b"", cuts: Sequence[int] = (), indirect: bool = False, pair: int = 0
    ) -> None:
        """Send a frame, cut at the given places of header and frame together; kick if that is wanted."""
        data = (header or bytes(self.header)) + frame
        places = [0, *cuts, len(data)]
        segments = []
        for start, end in zip(places, places[1:], strict=False):
            at = self.take(end - start)
            self.write(at, data[start:end])
            segments.append((at, end - start))
        queue = self.tx(pair)
        table = self.take(16 * len(segments)) if indirect else None
        queue.post(segments, write=False, table=table)
        self.kick(queue)

    def kick(self, queue: Queue) -> None:
        """As a driver does: only if the back end asks for it."""
        if self.features & EVENT_IDX:
            event = queue.get(queue.used + 4 + 8 * queue.size)
            if event == (queue.next_avail - 1) & 0xFFFF:
                queue.ring()
        elif queue.wants_kick:
            queue.ring()

    def receive(self, pair: int = 0) -> list[tuple[bytes, bytes]]:
        """Return headers and frames for this card that have come since the last look; post all buffers again."""
        queue = self.rx(pair)
        done = queue.taken()
        while done:
            head, size = done.pop(0)
            data = self._chain(queue, head, size)
            buffers = struct.unpack_from("<H", data, 10)[0] if self.header == 12 else 1
            for _ in range(buffers - 1):
                head, size = done.pop(0)
                data += self._chain(queue, head, size)
            frame = data[self.header :]
            if frame[:6] == self.mac or frame[0] & 1:  # Others come, too, while nobody knows where they belong.
                self.frames.append((data[: self.header], frame))
        found, self.frames = self.frames, []
        return found

    def _chain(self, queue: Queue, head: int, size: int) -> bytes:
        address, room, _, _ = struct.unpack_from("<QIHH", self.memory, queue.desc + 16 * head)
        assert size <= room
        data = self.read(address, size)
        queue.offer(head)
        return data

    def wait(self, count: int = 1, pair: int = 0, seconds: float = SECONDS) -> list[tuple[bytes, bytes]]:
        """Return `count` frames with their headers as soon as they are there."""
        found: list[tuple[bytes, bytes]] = []

        def enough() -> bool:
            found.extend(self.receive(pair))
            return len(found) >= count

        wait_until(enough, seconds)
        return found

    def frame(self, to: bytes, payload: bytes, kind: int = 0x88B5) -> bytes:
        """Return an Ethernet frame from this card."""
        return to + self.mac + kind.to_bytes(2, "big") + payload
