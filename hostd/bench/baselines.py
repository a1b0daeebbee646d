"""The baselines that stand beside a run's figures, taken in the same run on the same processors.

Each is measured by host processes of its own, started for it and gone afterwards. `python -m
hostd.bench.baselines --cpus 0,1 NAME...` prints them as JSON. The loops are C (shm/src/loops.c).
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import shm
from shm._shm import ffi, lib

ROUNDS = 200_000
TRIES = 5  # a baseline is the median of so many
MESSAGE = 64
RING = 256 << 10
STREAM = 10_000_000
COPY_WINDOW = 128 << 20  # larger than any last-level cache in sight
COPY_PIECE = 64 << 10
COPY_TOTAL = 1 << 30
PYTHON_ROUNDS = 20_000
BOUNCED = 2000
BOUNCED_NAMES = ("eventfd", "pipe", "unix_socket", "tcp_loopback", "zeromq_ipc", "iceoryx2")

Figures = dict[str, float]


class BaselineError(Exception):
    """A baseline that could not be measured; one sentence."""


def beside(cpus: Sequence[int], child: Callable[[], object], parent: Callable[[], Any]) -> Any:
    """Run `child` in a forked process on the last of `cpus` and `parent` here on the first; return `parent`'s value."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.sched_setaffinity(0, {cpus[-1]})
            child()
            status = 0
        finally:
            os._exit(status)
    os.sched_setaffinity(0, {cpus[0]})
    result = parent()
    _, status = os.waitpid(pid, 0)
    if status:
        raise BaselineError(f"a baseline's second process ended with status {os.waitstatus_to_exitcode(status)}")
    return result


def _shared(size: int) -> Any:
    """Return `size` zeroed bytes that a forked child shares, as a C pointer that keeps them."""
    return ffi.from_buffer("char *", mmap.mmap(-1, size), require_writable=True)


def _percentile_ns(ticks: Any, per_mille: int) -> float:
    ordered = sorted(ffi.unpack(ticks, ROUNDS))
    return float(ordered[(ROUNDS - 1) * per_mille // 1000] / lib.loop_ticks_per_ns())


def host_rtt(cpus: Sequence[int]) -> Figures:
    """Two processes that bounce one cache line: the shortest round trip there is. ns."""

    def once() -> float:
        line = ffi.cast("uint64_t *", memory := _shared(4096))
        ticks = ffi.new("uint32_t[]", ROUNDS)
        beside(cpus, lambda: lib.loop_bounce_answer(line, ROUNDS), lambda: lib.loop_bounce(line, ROUNDS, ticks))
        del memory
        return _percentile_ns(ticks, 500)

    return {"host_rtt_ns_p50": statistics.median(once() for _ in range(TRIES))}


def host_ring_rtt(cpus: Sequence[int]) -> Figures:
    """Two processes that bounce a 64-byte message over two rings. ns."""

    def once() -> float:
        there, back = (_shared(lib.loop_ring_bytes(RING)) for _ in range(2))
        ticks = ffi.new("uint32_t[]", ROUNDS)
        beside(
            cpus,
            lambda: lib.loop_answer(there, back, RING, MESSAGE, ROUNDS),
            lambda: lib.loop_ask(there, back, RING, MESSAGE, ROUNDS, ticks),
        )
        return _percentile_ns(ticks, 500)

    return {"host_ring_rtt_ns_p50": statistics.median(once() for _ in range(TRIES))}


def host_stream(cpus: Sequence[int]) -> Figures:
    """64-byte messages from one process to another over a ring, as fast as it goes. Messages a second."""

    def once() -> float:
        ring, source, target = _shared(lib.loop_ring_bytes(RING)), _shared(1 << 20), _shared(1 << 20)
        spent = beside(
            cpus,
            lambda: lib.loop_consume(ring, RING, MESSAGE, STREAM, target, 1 << 20),
            lambda: lib.loop_produce(ring, RING, MESSAGE, STREAM, source, 1 << 20),
        )
        return float(STREAM / spent * 1e9)

    return {"host_stream_messages_per_s": statistics.median(once() for _ in range(TRIES))}


def memcpy(cpus: Sequence[int]) -> Figures:
    """One thread that copies 64 KiB pieces between buffers larger than the last-level cache. Bytes a second."""
    os.sched_setaffinity(0, {cpus[0]})
    source, target = _shared(COPY_WINDOW), _shared(COPY_WINDOW)
    ffi.memmove(source, b"\1" * COPY_WINDOW, COPY_WINDOW)
    lib.loop_memcpy(target, source, COPY_WINDOW, COPY_PIECE, COPY_WINDOW)
    spent = [lib.loop_memcpy(target, source, COPY_WINDOW, COPY_PIECE, COPY_TOTAL) for _ in range(TRIES)]
    return {"memcpy_bytes_per_s": COPY_TOTAL / statistics.median(spent) * 1e9}


def python_pipe(cpus: Sequence[int]) -> Figures:
    """Two Python processes that bounce 64 bytes over multiprocessing.Pipe. ns."""
    ours, theirs = multiprocessing.Pipe()

    def answer() -> None:
        for _ in range(PYTHON_ROUNDS):
            theirs.send_bytes(theirs.recv_bytes())

    def ask() -> float:
        def bounce() -> None:
            ours.send_bytes(b"x" * MESSAGE)
            ours.recv_bytes()

        return _median_round(bounce)

    return {"python_pipe_rtt_ns_p50": beside(cpus, answer, ask)}


def python_channel(cpus: Sequence[int]) -> Figures:
    """Two Python processes that bounce 64 bytes over two channels of a region. ns."""
    channels = [shm.ChannelSpec("there"), shm.ChannelSpec("back")]
    with shm.Region.create(f"bench/python-{os.getpid()}", channels=channels) as region:

        def answer() -> None:
            with shm.Region.open(region.name) as mine:
                receiver, sender = mine.receiver("there"), mine.sender("back")
                for _ in range(PYTHON_ROUNDS):
                    sender.send(receiver.recv())

        def ask() -> float:
            sender, receiver = region.sender("there"), region.receiver("back")

            def bounce() -> None:
                sender.send(b"x" * MESSAGE)
                receiver.recv()

            return _median_round(bounce)

        return {"python_channel_rtt_ns_p50": beside(cpus, answer, ask)}


def _median_round(bounce: Callable[[], None]) -> float:
    rounds = []
    for _ in range(PYTHON_ROUNDS):
        start = time.perf_counter_ns()
        bounce()
        rounds.append(time.perf_counter_ns() - start)
    return statistics.median(rounds)


def _bounced(name: str) -> Callable[[Sequence[int]], Figures]:
    """Return a baseline: the median round trip of 64 bytes by the way `name` of `hostd bench latency`. ns."""

    def measure(cpus: Sequence[int]) -> Figures:
        from hostd.bench import BenchError
        from hostd.bench.latency_baselines import KINDS, Pairs, missing

        why = missing(KINDS[name])
        if why:
            raise BaselineError(why)
        try:
            with Pairs(cpus, lib.loop_ticks_per_ns()) as pairs:
                pair = pairs.get(name)
                tries = [pair.bounce(MESSAGE, BOUNCED, warm_up=BOUNCED // 10) for _ in range(TRIES)]
        except BenchError as error:
            raise BaselineError(str(error)) from None
        return {f"{name}_rtt_ns_p50": statistics.median(samples.median() for samples in tries)}

    return measure


BASELINES: dict[str, Callable[[Sequence[int]], Figures]] = {
    "host_rtt": host_rtt,
    "host_ring_rtt": host_ring_rtt,
    "host_stream": host_stream,
    "memcpy": memcpy,
    "python_pipe": python_pipe,
    "python_channel": python_channel,
    **{name: _bounced(name) for name in BOUNCED_NAMES},
}


def run(names: Sequence[str], cpus: Sequence[int]) -> Figures:
    """Measure the baselines `names` on the processors `cpus`, in a process of their own; return the figures by name.

    Raises BaselineError for an unknown name or one that could not be measured.
    """
    check(names)
    command = [sys.executable, "-m", "hostd.bench.baselines", "--cpus", ",".join(map(str, cpus)), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BaselineError((done.stderr.strip() or "a baseline failed").splitlines()[-1])
    figures: Figures = json.loads(done.stdout)
    return figures


def check(names: Sequence[str]) -> None:
    """Raise BaselineError for the first name that is no baseline."""
    for name in names:
        if name not in BASELINES:
            raise BaselineError(f"baseline {name!r} is unknown; there are {', '.join(sorted(BASELINES))}")


def main(arguments: Sequence[str]) -> int:
    """Measure what the command line names and print it as JSON."""
    _, cpus, *names = arguments
    figures: Figures = {}
    try:
        check(names)
        for name in names:
            figures |= BASELINES[name]([int(cpu) for cpu in cpus.split(",")])
    except (BaselineError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
