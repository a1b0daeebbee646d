"""The least that forwards: a process that copies messages from ring to ring and decides nothing. It bounds a switch."""

from __future__ import annotations

import mmap
import os
import signal
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import shm
from hostd.bench.network_spinner import Spinner
from hostd.bench.network_switch import MESSAGE, RING_SIZE
from hostd.bench.traffic._traffic import ffi, lib


class Copier(Spinner):
    """The process, on the processor `cpu`: from `out` of the first of `regions` to `in` of the second.

    A context manager; the process is gone afterwards.
    """

    def __init__(self, cpu: int) -> None:
        self._stack = ExitStack()
        rings = [shm.ChannelSpec(way, size=RING_SIZE, max_message=MESSAGE) for way in ("out", "in")]
        self.regions = [
            shm.Region.create(f"bench-{os.getpid()}/copy.{name}", channels=rings, backing="memfd", serve=False)
            for name in "ab"
        ]
        for region in self.regions:
            self._stack.callback(region.close)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.sched_setaffinity(0, {cpu})
                self._copy()
            finally:
                os._exit(1)

    def _copy(self) -> None:
        memories = [ffi.from_buffer("char[]", mmap.mmap(region.fd, region.size)) for region in self.regions]
        infos = [region.channels[way] for region, way in zip(self.regions, ("out", "in"), strict=True)]
        source, target = (memory + info.offset for memory, info in zip(memories, infos, strict=True))
        lib.traffic_copy(source, target, infos[0].size, infos[0].max_message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._stack.close()
