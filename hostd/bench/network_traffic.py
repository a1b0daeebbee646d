"""One-way traffic through a forwarder, from one processor: by vhost-user queues, or by the rings of ring ports."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import shm
from hostd.bench import BenchError
from hostd.bench.network_front import Front
from hostd.bench.network_switch import MACS
from hostd.bench.traffic._traffic import ffi, lib

TYPE = b"\x88\xb5"
"""for local experiments (IEEE 802)"""
QUEUE = 256
"""entries of a queue, and the most frames that are on their way, by queues and by rings"""
RING_HEADER, OFFLOAD, LINE = 8, 12, 64
"""bytes before a message in a ring, and before a frame in a message, and of which a message takes whole ones"""
WARM_UP = 0.01
MOST = 5
"""times as long as wanted it may take until so much of the time was quiet"""
WRONG = {
    lib.TRAFFIC_WRONG: "a frame came that is none of those on their way",
    lib.TRAFFIC_RING: "a ring was spoiled",
    lib.TRAFFIC_CLOCK: "it has ended",
    lib.TRAFFIC_SILENT: "no frame got through",
}


@dataclass(frozen=True)
class Passed:
    """What passed a forwarder while it was measured.

    `idle`: the part of that time in which its client waited for it. `quiet`: whether both had their processors to
    themselves; else too little of the time was, and all of it counts.
    """

    frames: int
    wall_ns: int
    forwarder_ns: int
    idle: float
    quiet: bool

    @property
    def per_wall_second(self) -> float:
        """Frames a second."""
        return self.frames / self.wall_ns * 1e9

    @property
    def per_cpu_second(self) -> float:
        """Frames a second of the forwarder's processor time."""
        return self.frames / self.forwarder_ns * 1e9


class Traffic:
    """Frames from one port to another. A context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._keep: list[Any] = []
        self._way = ffi.new("struct traffic *", {"window": QUEUE})
        self._way.ethernet = MACS[1] + MACS[0] + TYPE

    @classmethod
    def by_queues(cls, paths: Sequence[str]) -> Self:
        """Connect a front end to each of two vhost-user ports. Raises BenchError."""
        traffic = cls()
        with ExitStack() as stack:
            fronts = [stack.enter_context(Front(path, QUEUE)) for path in paths]
            traffic._keep += fronts
            traffic._way.transmit, traffic._way.receive = fronts[0].transmit, fronts[1].receive
            traffic._stack.push(stack.pop_all())
        return traffic

    @classmethod
    def by_rings(cls, regions: Sequence[shm.Region]) -> Self:
        """Take the rings of two ring ports: `out` of the first one, `in` of the second."""
        traffic = cls()
        ends = [(region, region.channels[way]) for region, way in zip(regions, ("out", "in"), strict=True)]
        maps = [ffi.from_buffer("char[]", mmap.mmap(region.fd, region.size)) for region, _ in ends]
        traffic._keep += maps
        way = traffic._way
        way.out_ring, way.in_ring = (memory + info.offset for memory, (_, info) in zip(maps, ends, strict=True))
        (out_region, out), (in_region, into) = ends
        way.ring_size, way.max_message, way.ring_flags = out.size, out.max_message, out.flags
        way.out_bell, way.in_bell = out_region.bells[out.data_bell], in_region.bells[into.space_bell]
        return traffic

    @property
    def sent(self) -> int:
        """Frames that were sent so far."""
        return int(self._way.sent)

    def run(self, cpu: int, forwarder: int, size: int, seconds: float) -> Passed:
        """Send and take frames of `size` bytes on the processor `cpu` for so long, through the process `forwarder`.

        Raises BenchError where a frame was lost, or another one came than the next.
        """
        self._way.frame_size = size
        if self._way.ring_size:  # A ring that is full loses frames, as a wire would.
            message = -(-(RING_HEADER + OFFLOAD + size) // LINE) * LINE
            self._way.window = min(QUEUE, self._way.ring_size // message - 2)
        result = ffi.new("struct traffic_result *")
        with on_cpu(cpu):
            ns = int(seconds * 1e9)
            state = lib.traffic_run(self._way, forwarder, int(WARM_UP * 1e9), ns, MOST * ns, result)
        if state:
            raise BenchError(f"the forwarder, process {forwarder}: {WRONG[state]}")
        if result.lost or not result.all.frames:
            raise BenchError(
                f"the forwarder, process {forwarder}: {result.lost} of {self._way.sent} frames did not come"
            )
        quiet = result.quiet.wall_ns >= seconds * 1e9 / MOST
        counted = result.quiet if quiet else result.all
        idle = counted.idle_ns / counted.wall_ns
        return Passed(counted.frames, counted.wall_ns, counted.forwarder_ns, idle, quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


@contextlib.contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Keep this thread on the processor `cpu` meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
