"""Linux guests beside QEMU microvm guests of the same kernel, initramfs, command line and memory, in the same run.

Both boot the vmlinux that hostd maps (QEMU by its own PVH loader, which spares it the unpacking of a bzImage).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostd.bench import BenchError
from hostd.bench.host_memory import available
from hostd.bench.rounds import Measurement, interleave
from hostd.cluster.file import from_tables
from hostd.supervisor.fleet import Fleet
from hostd.supervisor.guest_run import GuestRun
from hostd.supervisor.preflight import prepare
from hostd.supervisor.supervisor import Supervisor

FIRST_LINE = b"hostd: init"
"""what hostd's init says before anything else"""
QEMU = "qemu-system-x86_64"
BOOT_LIMIT = 120.0
IN_MODIFY = 0x2
IN_CREATE = 0x100
SETTLE = 5.0
"""seconds after the last guest's first line before memory is read: they load modules and mount"""
CMDLINE = "console=ttyS0 panic=-1 quiet pci=noearly"


@dataclass(frozen=True)
class BootTimes:
    """Seconds to init's first line, one value a round."""

    hostd: list[float]
    qemu: list[float]


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what both kinds of guest boot."""
    parser.add_argument("kernel", help="an image's name or the path of a kernel")
    parser.add_argument("--initrd", help="an image's name or a path (default: hostd's own for that kernel)")
    parser.add_argument("--memory", default="128MiB", help="of each guest (default: 128MiB)")


def boot_times(kernel: str, initrd: str | None, memory: int, rounds: int, tell: Callable[[str], None]) -> BootTimes:
    """Return seconds to init's first line, hostd and QEMU alternating, `rounds` times after one that warms both up.

    hostd: from the request to a supervisor that runs. QEMU: from the start of its process. Raises BenchError and what
    `prepare` raises.
    """
    plan, boots = prepare(_cluster(kernel, initrd, memory, 1))
    vmlinux, archive = boots["guest"].files[0][0], boots["guest"].files[1][0]

    async def measure() -> BootTimes:
        supervisor = Supervisor(plan, boots, foreground=True)
        ours: list[float] = []
        theirs: list[float] = []
        try:
            await supervisor.start()
            run = supervisor.fleet.runs["guest"]
            log = supervisor.directory.log("guest")
            await _first_line(log, 0, run)
            for number in range(rounds + 1):
                await _stop(supervisor.fleet, run)
                size = log.stat().st_size
                start = time.monotonic()
                run.stopping = False
                supervisor.fleet.launch(run)
                seconds = await _first_line(log, size, run) - start
                other = await asyncio.to_thread(_qemu_boot, vmlinux, archive, memory)
                if number:
                    ours.append(seconds)
                    theirs.append(other)
                tell(
                    f"round {number} of {rounds}: hostd {seconds:.3f} s, QEMU {other:.3f} s"
                    + " (warm-up)" * (number == 0)
                )
        finally:
            await supervisor.close()
        return BootTimes(ours, theirs)

    return asyncio.run(measure())


def memory_figures(
    kernel: str, initrd: str | None, memory: int, count: int, rounds: int, tell: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return what a guest of each kind costs with `count` at once: the fall of MemAvailable, and PSS, in bytes.

    By name: hostd_available, hostd_pss, qemu_microvm_available, qemu_microvm_pss; one value a round.

    Caches are dropped before each reading (where allowed), so that page cache that anybody read is not counted.
    """
    plan, boots = prepare(_cluster(kernel, initrd, memory, count))
    vmlinux, archive = boots["guest"].files[0][0], boots["guest"].files[1][0]

    async def ours() -> dict[str, int]:
        supervisor = Supervisor(plan, boots, foreground=True)
        try:
            before = available()
            await supervisor.start()
            runs = supervisor.fleet.runs
            for run in runs.values():
                await _first_line(supervisor.directory.log(run.name), 0, run)
            await asyncio.sleep(SETTLE)
            pids = [run.pid for run in runs.values() if run.pid is not None]
            return {"available": before - available(), "pss": sum(map(_pss, pids))}
        finally:
            await supervisor.close()

    def each(kind: str, found: dict[str, int]) -> dict[str, float]:
        return {f"{kind}_{name}": value / count for name, value in found.items()}

    measurements = [
        Measurement(f"{count} guests of hostd", lambda: each("hostd", asyncio.run(ours()))),
        Measurement(
            f"{count} guests of QEMU microvm",
            lambda: each("qemu_microvm", _qemu_memory(vmlinux, archive, memory, count)),
        ),
    ]
    return interleave(measurements, rounds, tell, warm_up=False)


def _cluster(kernel: str, initrd: str | None, memory: int, count: int) -> Any:
    guest: dict[str, Any] = {"kernel": kernel, "memory": memory}
    if initrd is not None:
        guest["initrd"] = initrd
    if count > 1:
        guest["count"] = count
    return from_tables(
        Path("bench.toml").resolve(), {"cluster": {"name": f"bench-{os.getpid()}"}, "guest": {"guest": guest}}
    )


async def _first_line(log: Path, start: int, run: GuestRun) -> float:
    """Wait for init's first line in `log` behind byte `start`; return when it was there (monotonic, seconds).

    Asleep until the log changes: to look again and again would take processor time from the guest that boots.
    """
    changed = asyncio.Event()
    deadline = time.monotonic() + BOOT_LIMIT
    with _watched(log.parent, changed):
        while time.monotonic() < deadline:
            changed.clear()
            if log.exists():
                with log.open("rb") as file:
                    file.seek(start)
                    if FIRST_LINE in file.read():
                        return time.monotonic()
            if run.result is not None:
                raise BenchError(f"{run.result['message'] or run.name + ' ended'} before its init said anything")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 1.0)
    raise BenchError(f"guest {run.name}: its init said nothing in {BOOT_LIMIT:.0f} s")


@contextlib.contextmanager
def _watched(folder: Path, changed: asyncio.Event) -> Iterator[None]:
    """Set `changed` whenever a file in `folder` is made or written, by inotify(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(folder), IN_MODIFY | IN_CREATE) < 0:
        raise BenchError(f"{folder} can't be watched: {os.strerror(ctypes.get_errno())}")

    def ready() -> None:
        os.read(fd, 1 << 16)
        changed.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ready)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _stop(fleet: Fleet, run: GuestRun) -> None:
    fleet.kill(run)
    await fleet.wait_finished([run])


@contextlib.contextmanager
def _qemu(vmlinux: str, initrd: str, memory: int) -> Iterator[subprocess.Popen[bytes]]:
    if shutil.which(QEMU) is None:
        raise BenchError(f"{QEMU} is missing; install it: apt-get install qemu-system-x86")
    command = [QEMU, "-M", "microvm,rtc=on", "-accel", "kvm", "-cpu", "host", "-m", f"{memory >> 20}"]
    command += ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", vmlinux, "-initrd", initrd, "-append", CMDLINE]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _qemu_first_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    said = []
    watchdog = threading.Timer(BOOT_LIMIT, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            said.append(line.decode(errors="replace").strip())
            if FIRST_LINE in line:
                return
    finally:
        watchdog.cancel()
    raise BenchError(f"QEMU ended before init said anything: {' / '.join(said[-3:])}")


def _qemu_boot(vmlinux: str, initrd: str, memory: int) -> float:
    start = time.monotonic()
    with _qemu(vmlinux, initrd, memory) as process:
        _qemu_first_line(process)
        return time.monotonic() - start


def _qemu_memory(vmlinux: str, initrd: str, memory: int, count: int) -> dict[str, int]:
    before = available()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_qemu(vmlinux, initrd, memory)) for _ in range(count)]
        for process in processes:
            _qemu_first_line(process)
        time.sleep(SETTLE)
        return {"available": before - available(), "pss": sum(_pss(process.pid) for process in processes)}


def _pss(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text[text.index("\nPss:") + 5 :].split(None, 1)[0]) << 10
