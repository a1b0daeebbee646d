"""How many guests fit, what each more costs, and what sharing the image has to do with it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostd.bench import BenchError, density_ksm
from hostd.bench.density_cluster import Crowd, Kind, LimitMet, build_image, cluster, linux, unikernel
from hostd.bench.density_memory import (
    MEASURES,
    Before,
    cpu_ns,
    image_rows,
    kernel_bytes,
    meminfo,
    shared_pages,
    used,
)
from hostd.bench.density_report import MODE_TEXTS, write
from hostd.bench.report import Report
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.cluster.sizes import format_size, parse_size
from hostd.doctor.limits import limits
from hostd.supervisor.preflight import check_kvm, prepare
from hostd.supervisor.supervisor import Supervisor

MODES: dict[str, dict[str, Any]] = {
    "shared": {},
    "copied": {"copied": True},
    "ksm": {"copied": True, "mergeable": True},
}
"""keys of the cluster file"""
FOLDER = "hostd-density-"
SETTLE_STEP, SETTLE_LIMIT = 0.3, 8.0
LINUX_SETTLE = 5.0
"""seconds after a Linux guest's first line, in which it loads modules and mounts"""
SETTLED = 0.002
"""part of the memory whose change in a step no longer counts"""
TALK = 16
"""messages that each guest sends when all talk"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what is to be run, in which steps, and where to stop."""
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--guests", type=_counts, help="guests at each step (default: 1,10,100,1000; Linux: 1,2,4)")
    steps.add_argument("--step", type=int, help="so many more at each step, up to --most")
    parser.add_argument("--most", type=int, default=1000, help="with --step: guests at the last step (default: 1000)")
    parser.add_argument("--modes", type=_modes, default=list(MODES), help=f"of {','.join(MODES)} (default: all)")
    parser.add_argument("--kernel", help="Linux guests with this kernel (a name or a path) in place of unikernels")
    parser.add_argument("--initrd", help="of Linux guests: a name or a path (default: hostd's own for that kernel)")
    parser.add_argument(
        "--memory", default=None, help="of each guest (default: 4MiB more than its image; Linux: 128MiB)"
    )
    parser.add_argument("--image-size", default="1MiB", help="of the table in a unikernel's image (default: 1MiB)")
    parser.add_argument("--write", type=int, default=16, help="pages of the table that each guest writes (default: 16)")
    parser.add_argument(
        "--idle", type=float, default=3.0, help="seconds over which idle guests are watched (default: 3)"
    )
    parser.add_argument("--leave", default="1GiB", help="memory that the host is left with (default: 1GiB)")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds for all (default: 900)")


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if counts != sorted(set(counts)) or counts[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; numbers of guests are wanted, each more than the one before")
    return counts


def _modes(text: str) -> list[str]:
    modes = text.split(",")
    for mode in modes:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"{mode!r} is no mode; there are {', '.join(MODES)}")
    return list(dict.fromkeys(modes))


@dataclass
class Sweep:
    """What all sweeps of a run have in common, and what they found."""

    kind: Kind
    counts: list[int]
    written: int
    idle: float
    leave: int
    deadline: float
    tell: Tell
    notes: dict[str, None] = field(default_factory=dict)
    sharing: dict[str, list[float]] = field(default_factory=dict)
    """by mode: which part of the guests has each page of the image in common, at the last step of the last round"""

    def run(self, mode: str) -> Mapping[str, float]:
        """Start guests of `mode` step by step; return what was found by "MODE COUNT FIGURE"."""
        with density_ksm.Merging() if mode == "ksm" else contextlib.nullcontext() as merging:
            return _run(self._run(mode, merging))

    async def _run(self, mode: str, merging: density_ksm.Merging | None) -> dict[str, float]:
        found: dict[str, float] = {}
        before = Before.now()
        supervisor = Supervisor(*prepare(self._cluster(mode)), foreground=True)
        crowd: Crowd | None = None
        try:
            await supervisor.start(guests=False)
            crowd = Crowd(supervisor, self.kind, self.leave, self.deadline)
            stopped = await self._steps(mode, crowd, before, merging, found)
            reached = len(crowd.started)
            if stopped is None and reached:
                self.tell(f"{mode}: {reached} guests end")
                found[f"{mode} {reached} end"] = await crowd.end()
        finally:
            if crowd is not None:
                crowd.close()
            await supervisor.close()
        return found

    def _cluster(self, mode: str) -> Any:
        return cluster(self.kind, MODES[mode], self.counts, self.written)

    async def _steps(
        self, mode: str, crowd: Crowd, before: Before, merging: density_ksm.Merging | None, found: dict[str, float]
    ) -> str | None:
        """Go through the steps; return the limit that ended a step half way, or None."""
        cost, last = 0.0, 0
        for wanted in self.counts:
            count, why = self._room(wanted, last, cost)
            if why is not None:
                self._note(mode, count, why)
            if count <= last:
                return None
            self.tell(f"{mode}: {count} guests")
            try:
                seconds = await crowd.start(count)
                values = await self._measure(crowd, before, merging)
                values["rate"] = (count - last) / seconds
                if self.kind.talks:
                    values["messages"] = count * TALK / await crowd.talk(TALK)
            except LimitMet as limit:
                if crowd.supervisor.fleet.failed_start is not None and not last:
                    raise BenchError(str(limit)) from None
                self._note(mode, last, str(limit))
                return str(limit)
            found |= {f"{mode} {count} {name}": value for name, value in values.items()}
            cost = max(values[name] / count for name in MEASURES if name in values)
            last = count
            rows = [(run.pid, image_rows(run.rows)) for run in crowd.started if run.pid is not None]
            self.sharing[mode] = shared_pages(rows)
            if why is not None:
                return None
        return None

    def _note(self, mode: str, count: int, why: str) -> None:
        self.notes[f"{mode}: the sweep ended at {count} guests; the limit met: {why}."] = None

    def _room(self, wanted: int, last: int, cost: float) -> tuple[int, str | None]:
        """Return how many of `wanted` guests there is memory for, and what keeps the rest away."""
        available = meminfo()["MemAvailable"]
        fit = last + max(0, int((available - self.leave) / cost)) if cost else wanted
        if wanted > fit:
            left = format_size(self.leave)
            return fit, f"memory: {format_size(available >> 20 << 20)} is available, and {left} is to be left (--leave)"
        return wanted, None

    async def _measure(self, crowd: Crowd, before: Before, merging: density_ksm.Merging | None) -> dict[str, float]:
        """Return what the guests that are there cost at rest."""
        group = crowd.supervisor.fleet.figures.group
        if group is None:
            self.notes["The measure by control group is left out: this process may not make one here."] = None
        warm = crowd.supervisor.warm_pid
        pids = [*crowd.pids, *([warm] if warm is not None else [])]
        values: dict[str, float] = {}
        await self._settle(crowd, merging)
        if merging is not None:
            merging.pause()
            values["merging"] = merging.spent
        values |= used(before, group, pids)
        kernel = None if group is None else kernel_bytes(group)
        if kernel is not None:
            values["kernel"] = kernel
        start, spent = time.monotonic_ns(), cpu_ns(pids)
        await asyncio.sleep(self.idle)
        values["idle"] = (cpu_ns(pids) - spent) / (time.monotonic_ns() - start)
        if merging is not None:
            merging.go_on()
        return values

    async def _settle(self, crowd: Crowd, merging: density_ksm.Merging | None) -> None:
        """Wait until the guests have come to rest: the memory that is available no longer changes."""
        if not self.kind.talks:
            await asyncio.sleep(LINUX_SETTLE)
        limit = time.monotonic() + SETTLE_LIMIT
        last = meminfo()["MemAvailable"]
        while time.monotonic() < limit:
            await asyncio.sleep(SETTLE_STEP)
            now = meminfo()["MemAvailable"]
            if abs(now - last) <= SETTLED * now:
                break
            last = now
        while merging is not None and not await merging.settled():
            if time.monotonic() > self.deadline:
                raise LimitMet("the time limit (--time-limit)")


def _run(work: Coroutine[Any, Any, dict[str, float]]) -> dict[str, float]:
    """Run `work`; have SIGTERM and SIGHUP end it as Ctrl-C does, with nothing left."""
    received: list[int] = []

    async def watched() -> dict[str, float]:
        task = asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        raise SystemExit(128 + received[0] if received else 1) from None


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Sweep through all modes, `rounds` times. Raises BenchError and what `prepare` raises."""
    check_kvm()
    modes, notes = list(options.modes), []
    why = density_ksm.missing()
    if "ksm" in modes and why is not None:
        modes.remove("ksm")
        notes.append(f"ksm is left out: {why}.")
    if not modes:
        raise BenchError(f"no mode is left to be measured: {why}")
    counts, why = _allowed(_steps(options))
    if why is not None:
        notes.append(f"The sweep ended at {counts[-1]} guests; the limit met: {why}.")
    with _folder() as folder:
        sweep = Sweep(
            _kind(options, folder),
            counts,
            options.write,
            options.idle,
            _size("--leave", options.leave),
            time.monotonic() + options.time_limit,
            tell,
        )
        measurements = [
            Measurement(f"guests, {MODE_TEXTS[mode]}", functools.partial(sweep.run, mode)) for mode in modes
        ]
        found = interleave(measurements, options.rounds, tell, warm_up=False)
    report = Report(bench="density", command="", machine={}, notes=[*notes, *sweep.notes])
    write(report, found, sweep.sharing, modes, options, sweep.kind)
    return report


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Give a folder for the guests' image; it goes with this context, or a killed run's with the next one."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        if not Path("/proc", left.name.removeprefix(FOLDER).partition(".")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}.") as folder:
        yield Path(folder)


def _kind(options: argparse.Namespace, folder: Path) -> Kind:
    if options.kernel is not None:
        return linux(options.kernel, options.initrd, _size("--memory", options.memory or "128MiB"))
    size = _size("--image-size", options.image_size)
    memory = _size("--memory", options.memory) if options.memory else (4 << 20) + (size + 4095) // 4096 * 4096
    return unikernel(build_image(folder, size), memory)


def _steps(options: argparse.Namespace) -> list[int]:
    if options.step is None:
        counts: Sequence[int] = options.guests or ([1, 2, 4] if options.kernel else [1, 10, 100, 1000])
        return list(counts)
    if not 1 <= options.step <= options.most:
        raise BenchError(f"--step {options.step}: it must be from 1 to --most, {options.most}")
    return [*range(options.step, options.most, options.step), options.most]


def _allowed(counts: list[int]) -> tuple[list[int], str | None]:
    """Return the steps that the host's limits allow, the last one as far as it does, and which limit ended them."""
    tightest = limits(counts[-1])[0]
    if counts[-1] <= tightest.guests:
        return counts, None
    if tightest.guests < 1:
        raise BenchError(tightest.sentence())
    return [*(count for count in counts if count < tightest.guests), tightest.guests], tightest.sentence()


def _size(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise BenchError(f"{option}: {error}") from None
