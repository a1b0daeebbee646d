"""A small vhost-user back end for tests: keeps what guests send, delivers what it is given, answers as it is told."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import socket
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NAMES = {
    1: "GET_FEATURES",
    2: "SET_FEATURES",
    3: "SET_OWNER",
    5: "SET_MEM_TABLE",
    8: "SET_VRING_NUM",
    9: "SET_VRING_ADDR",
    10: "SET_VRING_BASE",
    11: "GET_VRING_BASE",
    12: "SET_VRING_KICK",
    13: "SET_VRING_CALL",
    14: "SET_VRING_ERR",
    15: "GET_PROTOCOL_FEATURES",
    16: "SET_PROTOCOL_FEATURES",
    17: "GET_QUEUE_NUM",
    18: "SET_VRING_ENABLE",
    20: "NET_SET_MTU",
}
VERSION, REPLY, NEED_REPLY = 1, 4, 8
MRG_RXBUF, MQ, INDIRECT, EVENT_IDX, PROTOCOL, VERSION_1 = 15, 22, 28, 29, 30, 32
CSUM, GUEST_CSUM, HOST_TSO4 = 0, 1, 11
OFFLOADS = (CSUM, GUEST_CSUM, 7, 8, HOST_TSO4, 12, 54, 55, 56)
"""checksums, TSO4, TSO6, USO; what a switch of hostd can"""
P_MQ, P_REPLY_ACK, P_MTU = 0, 3, 4
ALL = sum(1 << bit for bit in (*OFFLOADS, MRG_RXBUF, MQ, INDIRECT, EVENT_IDX, PROTOCOL, VERSION_1))
P_ALL = 1 << P_MQ | 1 << P_REPLY_ACK | 1 << P_MTU
HEADER = 12
"""bytes of struct virtio_net_hdr_v1 before each frame"""
NEXT, TABLE = 1, 4


@dataclass
class Region:
    gpa: int
    size: int
    uva: int
    memory: mmap.mmap

    def __contains__(self, gpa: int) -> bool:
        return self.gpa <= gpa < self.gpa + self.size


@dataclass
class Ring:
    """A queue as the front end told of it. Addresses are the front end's."""

    size: int = 0
    base: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    kick: int = -1
    call: int = -1
    err: int = -1
    enabled: bool = False
    next: int = 0

    def close(self) -> None:
        for fd in (self.kick, self.call, self.err):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = self.err = -1


Answer = Callable[["Backend", str, bytes], bytes | None]
"""(back end, request, the whole right answer, b"" if none is due) to what is sent instead; None: hang up"""


def honest(_: Backend, __: str, right: bytes) -> bytes:
    return right


@dataclass
class Backend:
    """Listens at `path` from `start` to `stop`; one front end at a time."""

    path: str
    features: int = ALL
    protocol: int = P_ALL
    pairs: int = 4
    answer: Answer = honest
    silent_calls: bool = False
    messages: list[tuple[str, bytes]] = field(default_factory=list)
    sent: deque[tuple[int, bytes]] = field(default_factory=deque)
    """what guests sent: (queue, header and frame)"""
    regions: list[Region] = field(default_factory=list)
    rings: dict[int, Ring] = field(default_factory=dict)
    sessions: int = 0
    negotiated: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._acknowledges = False
        self._blamed: int | None = None

    # --- life ---

    def start(self) -> Backend:
        self._stop, self._poked = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Die: no socket, no connection, no memory."""
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
            self._listener.close()
            os.unlink(self.path)
            os.close(self._stop)
            os.close(self._poked)

    def __enter__(self) -> Backend:
        return self if self._thread else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while True:
            kicks = {ring.kick: number for number, ring in self.rings.items() if ring.kick >= 0}
            watched: list[int | socket.socket] = [self._stop, self._poked, self._listener, *kicks]
            if self.connection is not None:
                watched.append(self.connection)
            ready, _, _ = select.select(watched, [], [])
            with self.lock:
                if self._stop in ready:
                    self._hang_up()
                    return
                for fd in (self._poked, *kicks):
                    if fd in ready:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(fd)
                if self._blamed is not None:
                    os.eventfd_write(self.rings[self._blamed].err, 1)
                    self._hang_up()
                    self._blamed = None
                elif self._listener in ready:
                    fresh, _ = self._listener.accept()
                    if self.connection is None:
                        self.connection, self.sessions = fresh, self.sessions + 1
                    else:
                        fresh.close()
                elif self.connection in ready and not self._hear():
                    self._hang_up()
                self._move()

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()
        for region in self.regions:
            region.memory.close()
        self.regions.clear()
        self._acknowledges = False

    # --- messages ---

    def count(self, name: str) -> int:
        """Return how often a message came."""
        with self.lock:
            return sum(known == name for known, _ in self.messages)

    def told(self, name: str) -> list[tuple[int, ...]]:
        """Return the payloads of a message as words."""
        with self.lock:
            found = [payload for known, payload in self.messages if known == name]
        form = {"SET_VRING_ADDR": "=2I4Q"}
        states = ("SET_VRING_NUM", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_ENABLE")
        return [struct.unpack("=II" if name in states else form.get(name, "=Q"), payload) for payload in found]

    def _hear(self) -> bool:
        assert self.connection is not None
        try:
            head, fds, _, _ = socket.recv_fds(self.connection, 12, 8)
        except ConnectionResetError:
            return False
        if not head:
            return False
        request, flags, size = struct.unpack("=3I", head)
        payload = self.connection.recv(size, socket.MSG_WAITALL) if size else b""
        name = NAMES[request]
        self.messages.append((name, payload))
        due = self._do(name, payload, fds)
        if due is None and flags & NEED_REPLY and self._acknowledges:
            due = bytes(8)
        right = b"" if due is None else struct.pack("=3I", request, VERSION | REPLY, len(due)) + due
        said = self.answer(self, name, right)
        if said is None:
            return False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.sendall(said)
        return True

    def _do(self, name: str, payload: bytes, fds: list[int]) -> bytes | None:
        number = int.from_bytes(payload[:8], "little")
        index = int.from_bytes(payload[:4], "little")
        ring = self.rings.setdefault(index, Ring()) if "VRING" in name else Ring()
        match name:
            case "GET_FEATURES":
                return struct.pack("=Q", self.features)
            case "SET_FEATURES":
                assert not number & ~self.features
                self.negotiated = number
            case "GET_PROTOCOL_FEATURES":
                return struct.pack("=Q", self.protocol)
            case "SET_PROTOCOL_FEATURES":
                assert not number & ~self.protocol
                self._acknowledges = bool(number >> P_REPLY_ACK & 1)
            case "GET_QUEUE_NUM":
                return struct.pack("=Q", self.pairs)
            case "SET_MEM_TABLE":
                self._map(payload, fds)
            case "SET_VRING_NUM":
                ring.size = number >> 32
            case "SET_VRING_BASE":
                ring.base = ring.next = number >> 32
            case "SET_VRING_ADDR":
                _, flags, ring.desc, ring.used, ring.avail, _ = struct.unpack("=2I4Q", payload)
                assert flags == 0
            case "SET_VRING_KICK" | "SET_VRING_CALL" | "SET_VRING_ERR":
                [fd] = fds
                setattr(ring, name.rpartition("_")[2].lower(), fd)
                if name == "SET_VRING_KICK" and not self.negotiated >> PROTOCOL & 1:
                    ring.enabled = True
            case "SET_VRING_ENABLE":
                ring.enabled = bool(number >> 32)
            case "GET_VRING_BASE":
                del self.rings[index]
                ring.close()
                return struct.pack("=II", index, ring.next)
        return None

    def _map(self, payload: bytes, fds: list[int]) -> None:
        count = int.from_bytes(payload[:4], "little")
        assert count == len(fds)
        for number, fd in enumerate(fds):
            gpa, size, uva, offset = struct.unpack_from("=4Q", payload, 8 + 32 * number)
            self.regions.append(Region(gpa, size, uva, mmap.mmap(fd, size, offset=offset)))
            os.close(fd)

    # --- memory and queues ---

    def read(self, gpa: int, size: int) -> bytes:
        region = next(region for region in self.regions if gpa in region)
        return region.memory[gpa - region.gpa : gpa - region.gpa + size]

    def write(self, gpa: int, data: bytes) -> None:
        region = next(region for region in self.regions if gpa in region)
        region.memory[gpa - region.gpa : gpa - region.gpa + len(data)] = data

    def _gpa(self, uva: int) -> int:
        region = next(region for region in self.regions if region.uva <= uva < region.uva + region.size)
        return uva - region.uva + region.gpa

    def _take(self, ring: Ring) -> tuple[int, list[tuple[int, int]]] | None:
        """Return the next chain: its head, and (address, size) of its buffers."""
        avail, desc = self._gpa(ring.avail), self._gpa(ring.desc)
        if struct.unpack("<H", self.read(avail + 2, 2))[0] == ring.next & 0xFFFF:
            return None
        [head] = struct.unpack("<H", self.read(avail + 4 + 2 * (ring.next % ring.size), 2))
        ring.next = (ring.next + 1) & 0xFFFF
        buffers, index = [], head
        while True:
            address, size, flags, following = struct.unpack("<QIHH", self.read(desc + 16 * index, 16))
            if flags & TABLE:
                desc, index = address, 0
                continue
            buffers.append((address, size))
            if not flags & NEXT:
                return head, buffers
            index = following

    def _use(self, ring: Ring, head: int, written: int) -> None:
        used = self._gpa(ring.used)
        [index] = struct.unpack("<H", self.read(used + 2, 2))
        self.write(used + 4 + 8 * (index % ring.size), struct.pack("<II", head, written))
        self.write(used + 2, struct.pack("<H", (index + 1) & 0xFFFF))
        if ring.call >= 0 and not self.silent_calls:
            os.eventfd_write(ring.call, 1)

    def _move(self) -> None:
        for number, ring in self.rings.items():
            while number % 2 and ring.enabled and ring.kick >= 0 and (chain := self._take(ring)):
                head, buffers = chain
                self.sent.append((number, b"".join(self.read(*buffer) for buffer in buffers)))
                self._use(ring, head, 0)
        for _ in range(len(self._waiting)):
            number, data = self._waiting.popleft()
            found = self.rings.get(number)
            chain = self._take(found) if found is not None and found.enabled and found.kick >= 0 else None
            if found is None or chain is None:
                self._waiting.append((number, data))
                continue
            head, buffers = chain
            done = 0
            for address, size in buffers:
                self.write(address, data[done : done + size])
                done += len(data[done : done + size])
            assert done == len(data)
            self._use(found, head, done)

    def deliver(self, frame: bytes, queue: int = 0) -> None:
        """Give the guest a frame as soon as it has room for it."""
        with self.lock:
            self._waiting.append((queue, bytes(HEADER) + frame))
        os.eventfd_write(self._poked, 1)

    def blame(self, queue: int) -> None:
        """Say that a queue is wrong, and hang up."""
        self._blamed = queue
        os.eventfd_write(self._poked, 1)


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder with a short name: pytest's are too long for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="vhost."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
