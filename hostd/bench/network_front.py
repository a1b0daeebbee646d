"""A vhost-user front end with one pair of queues, for any back end: hostd's switch, or DPDK's.

It lays out its memory, tells the back end of it, and then leaves the queues to whoever sends and receives by them.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import time
from types import TracebackType
from typing import Any, Self

from hostd.bench import BenchError
from hostd.bench.traffic._traffic import ffi, lib

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = 8, 9, 10, 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE = 15, 16, 18
MERGEABLE, VERSION_1, PROTOCOL = 1 << 15, 1 << 32, 1 << 30
FEATURES = MERGEABLE | VERSION_1 | PROTOCOL
"""what Linux's and DPDK's drivers have in common, and both back ends take"""
VERSION, REPLY = 1, 4
ROOM = 2048
"""bytes of a buffer"""
RINGS = 0x10000
"""bytes for the rings of one queue; buffers lie behind those of both"""
ADDRESS = 0x7F00_0000_0000
"""where the back end is told that the memory is in the front end: any address does"""
PATIENCE = 20.0
"""seconds for a back end to listen, and to answer"""


class Front:
    """A front end's memory, queues and connection. A context manager. Raises BenchError."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._connection = _connect(path)
        self._fd = os.memfd_create("bench-front", os.MFD_CLOEXEC)
        self._bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)]
        bytes_all = 2 * RINGS + 2 * size * ROOM
        os.ftruncate(self._fd, bytes_all)
        self._memory = mmap.mmap(self._fd, bytes_all)
        self._base = ffi.from_buffer("char[]", self._memory)
        self.receive, self.transmit = (self._queue(index, size) for index in range(2))
        try:
            self._start(bytes_all)
        except OSError as error:
            self.close()
            raise BenchError(f"{path}: the vhost-user back end does not answer: {error}") from None

    def _queue(self, index: int, size: int) -> Any:
        at, buffers = index * RINGS, 2 * RINGS + index * size * ROOM
        avail = at + 16 * size
        used = (avail + 6 + 2 * size + 63) // 64 * 64
        return ffi.new(
            "struct traffic_queue *",
            {
                "desc": self._base + at,
                "avail": self._base + avail,
                "used": self._base + used,
                "buffers": self._base + buffers,
                "buffers_gpa": buffers,
                "size": size,
                "room": ROOM,
                "kick": self._bells[2 * index],
            },
        )

    def _start(self, bytes_all: int) -> None:
        offered = self._ask(GET_FEATURES)
        if offered & FEATURES != FEATURES:
            raise BenchError(f"{self._path}: the vhost-user back end offers {offered:#x}, {FEATURES:#x} are needed")
        self._ask(GET_PROTOCOL_FEATURES)
        self._tell(SET_PROTOCOL_FEATURES, struct.pack("=Q", 0))
        self._tell(SET_OWNER)
        self._tell(SET_FEATURES, struct.pack("=Q", FEATURES))
        table = struct.pack("=II4Q", 1, 0, 0, bytes_all, ADDRESS, 0)
        self._tell(SET_MEM_TABLE, table, [self._fd])
        for index, queue in enumerate((self.receive, self.transmit)):
            areas = [ADDRESS + int(area - self._base) for area in (queue.desc, queue.used, queue.avail)]
            self._tell(SET_VRING_NUM, struct.pack("=II", index, queue.size))
            self._tell(SET_VRING_BASE, struct.pack("=II", index, 0))
            self._tell(SET_VRING_ADDR, struct.pack("=2I4Q", index, 0, *areas, 0))
            self._tell(SET_VRING_CALL, struct.pack("=Q", index), [self._bells[2 * index + 1]])
            self._tell(SET_VRING_KICK, struct.pack("=Q", index), [self._bells[2 * index]])
        for index in range(2):
            self._tell(SET_VRING_ENABLE, struct.pack("=II", index, 1))
        self._ask(GET_FEATURES)  # Answered after all that was told before.
        lib.traffic_fill(self.receive)

    def _tell(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._connection.sendmsg([struct.pack("=3I", request, VERSION, len(payload)) + payload], rights)

    def _ask(self, request: int) -> int:
        self._tell(request)
        answer = self._connection.recv(20, socket.MSG_WAITALL)
        if len(answer) < 20 or struct.unpack_from("=2I", answer) != (request, VERSION | REPLY):
            raise BenchError(f"{self._path}: the vhost-user back end answers request {request} with {answer.hex()!r}")
        return int(struct.unpack_from("=Q", answer, 12)[0])

    def close(self) -> None:
        """Go away."""
        self._connection.close()
        for bell in self._bells:
            os.close(bell)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connect(path: str) -> socket.socket:
    """Connect to a back end that may be starting still."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.connect(path)
            return connection
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() > end:
                connection.close()
                raise BenchError(f"{path}: no vhost-user back end listens there: {error.strerror}") from None
            time.sleep(0.05)
