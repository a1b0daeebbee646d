"""The baselines that stand beside a run's figures, taken in the same run on the same processors.

Each is measured by host processes of its own, started for it and gone afterwards. `python -m
hostd.bench.baselines --cpus 0,1 NAME...` prints them as JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

from hostd.bench._hardware import ffi, lib

ROUNDS = 200_000
COPY_SIZE = 256 << 20  # larger than any last-level cache in sight
COPIES = 5

Figures = dict[str, float]


class BaselineError(Exception):
    """A baseline that could not be measured; one sentence."""


def beside(cpus: Sequence[int], child: Callable[[], None], parent: Callable[[], None]) -> None:
    """Run `child` in a forked process on the first of `cpus` and `parent` here on the last; wait for both."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.sched_setaffinity(0, {cpus[0]})
            child()
            status = 0
        finally:
            os._exit(status)
    os.sched_setaffinity(0, {cpus[-1]})
    parent()
    _, status = os.waitpid(pid, 0)
    if status:
        raise BaselineError(f"a baseline's second process ended with status {os.waitstatus_to_exitcode(status)}")


def host_rtt(cpus: Sequence[int]) -> Figures:
    """Two processes that bounce one cache line: the shortest round trip there is."""
    shared = mmap.mmap(-1, 4096)
    line = ffi.from_buffer("uint64_t *", shared, require_writable=True)
    ticks = ffi.new("uint32_t[]", ROUNDS)
    beside(
        cpus,
        lambda: lib.bounce_answer(line, ROUNDS),
        lambda: lib.bounce_measure(line, ROUNDS, ticks),
    )
    ordered = sorted(ffi.unpack(ticks, ROUNDS))
    per_ns = lib.ticks_per_ns()
    return {
        "host_rtt_ns_p50": ordered[ROUNDS // 2] / per_ns,
        "host_rtt_ns_p99": ordered[ROUNDS * 99 // 100] / per_ns,
    }


def memcpy(cpus: Sequence[int]) -> Figures:
    """One thread that copies buffers larger than the last-level cache; bytes copied a second."""
    os.sched_setaffinity(0, {cpus[0]})
    source, target = mmap.mmap(-1, COPY_SIZE), mmap.mmap(-1, COPY_SIZE)
    to, from_ = ffi.from_buffer("char *", target, require_writable=True), ffi.from_buffer("char *", source)
    for page in range(0, COPY_SIZE, mmap.PAGESIZE):
        source[page] = 1
    lib.copy_ns(to, from_, COPY_SIZE)
    times = [lib.copy_ns(to, from_, COPY_SIZE) for _ in range(COPIES)]
    return {"memcpy_bytes_per_s": COPY_SIZE / statistics.median(times) * 1e9}


BASELINES: dict[str, Callable[[Sequence[int]], Figures]] = {"host_rtt": host_rtt, "memcpy": memcpy}


def run(names: Sequence[str], cpus: Sequence[int]) -> Figures:
    """Measure the baselines `names` on the processors `cpus`, in a process of their own; return the figures by name.

    Raises BaselineError for an unknown name or one that could not be measured.
    """
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
