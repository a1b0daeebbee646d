"""Two Linux guests on one network, made twice of the same plan: by hostd, and by QEMU with taps on a Linux bridge.

Both kinds boot the same vmlinux with the same initramfs, files, command line, addresses and memory, and both are spoken
to by way of hostd's agent in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostd.agent import terminal
from hostd.agent.link import AgentError, AgentLink
from hostd.bench import BenchError
from hostd.bench.bridge import bridged_taps
from hostd.cluster.file import from_tables
from hostd.cluster.plan import Plan, PlannedGuest
from hostd.supervisor import handover
from hostd.supervisor.boots import Boot
from hostd.supervisor.preflight import prepare
from hostd.supervisor.regions import Regions
from hostd.supervisor.supervisor import Supervisor

QEMU = "qemu-system-x86_64"
VHOST = Path("/dev/vhost-net")
BOOT_LIMIT = 180.0
COMMAND_LIMIT = 60.0
NETWORK = "lan"
MTU = 1500
GUESTS = ("one", "two")
PR_SET_PDEATHSIG = 1

Run = Callable[..., Awaitable[bytes]]


@dataclass(frozen=True)
class Running:
    """A pair that runs. `run(guest, command...)` returns the command's output; `processes` are pids by what they do."""

    run: Run
    processes: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class _Qemu:
    process: subprocess.Popen[bytes]
    log: int


class Pair:
    """A plan for two guests, and what they boot. Raises BenchError and what `prepare` raises."""

    def __init__(self, kernel: str, memory: int, files: Mapping[str, str]) -> None:
        guest = {"kernel": kernel, "memory": memory, "networks": [NETWORK], "files": dict(files)}
        tables = {
            "cluster": {"name": f"bench-{os.getpid()}"},
            "network": {NETWORK: {"subnet": "10.7.0.0/24", "mtu": MTU}},
            "guest": {name: dict(guest) for name in GUESTS},
        }
        self.plan: Plan
        self.boots: dict[str, Boot]
        self.plan, self.boots = prepare(from_tables(Path("bench.toml").resolve(), tables))

    @contextlib.asynccontextmanager
    async def on_hostd(self) -> AsyncIterator[Running]:
        """Run the guests by hostd. Raises BenchError and what a supervisor's start raises."""
        supervisor = Supervisor(self.plan, self.boots, foreground=True)
        try:
            await supervisor.start()
            links = {}
            await supervisor.fleet.wait_started()
            for name, run in supervisor.fleet.runs.items():
                try:
                    links[name] = await supervisor.fleet.agents.link(run, BOOT_LIMIT)
                except AgentError as error:
                    raise BenchError(str(error)) from None
            guests = [run.pid for run in supervisor.fleet.runs.values() if run.pid is not None]
            switch = supervisor.networks.switches[NETWORK].summary()["pid"]
            yield Running(_runner(links), {"guests": guests, "switch": [switch] if switch else []})
        finally:
            await supervisor.close()

    @contextlib.asynccontextmanager
    async def on_qemu(self, *, vhost: bool) -> AsyncIterator[Running]:
        """Run the guests by QEMU, their queues served by the kernel if `vhost`, else by QEMU. Raises BenchError."""
        with contextlib.ExitStack() as stack:
            # pyroute2 has an event loop of its own.
            taps = await asyncio.to_thread(stack.enter_context, bridged_taps(len(GUESTS), MTU))
            links: dict[str, AgentLink] = {}
            machines = []
            try:
                for name, tap in zip(GUESTS, taps, strict=True):
                    agent, theirs = socket.socketpair()
                    with theirs:
                        log = stack.enter_context(os.fdopen(os.memfd_create(f"qemu-{name}"), "w+b"))
                        machine = stack.enter_context(self._qemu(name, tap, theirs, log.fileno(), vhost=vhost))
                    machines.append(machine)
                    links[name] = _Link(agent, f"QEMU's guest {name}")
                for link, machine in zip(links.values(), machines, strict=True):
                    await _answering(link, machine)
                guests = [machine.process.pid for machine in machines]
                yield Running(_runner(links), {"guests": guests, "vhost": _vhost_workers(guests)})
            finally:
                await asyncio.gather(*(link.close() for link in links.values()))

    @contextlib.contextmanager
    def _qemu(self, name: str, tap: int, agent: socket.socket, log: int, *, vhost: bool) -> Iterator[_Qemu]:
        if shutil.which(QEMU) is None:
            raise BenchError(f"{QEMU} is missing; install it: apt-get install --no-install-recommends qemu-system-x86")
        guest, boot = self.plan.guests[name], self.boots[name]
        (vmlinux, _), (archive, _) = boot.files[:2]
        with os.fdopen(self._initrd(guest, Path(archive)), "rb") as initrd:
            command = [QEMU, "-M", "microvm,pcie=on,rtc=on", "-accel", "kvm", "-cpu", "host"]
            command += [
                "-m",
                str(guest.group.memory >> 20),
                "-nodefaults",
                "-no-user-config",
                "-nographic",
                "-no-reboot",
            ]
            command += ["-serial", "stdio", "-kernel", vmlinux, "-initrd", f"/proc/self/fd/{initrd.fileno()}"]
            command += ["-append", boot.description["cmdline"]]
            command += ["-netdev", f"tap,id=net,fd={tap},vhost={'on' if vhost else 'off'}"]
            command += ["-device", f"virtio-net-pci,netdev=net,mac={guest.ports[NETWORK].mac_text}"]
            command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={agent.fileno()}"]
            command += ["-device", "virtserialport,chardev=agent,name=hostd.agent"]
            parent = os.getpid()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[tap, agent.fileno(), initrd.fileno()],
                preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 (what runs there takes no lock)
                # A Ctrl-C at the terminal is this process's to hear.
                process_group=0,
            )
        try:
            yield _Qemu(process, log)
        finally:
            process.kill()
            process.wait()

    def _initrd(self, guest: PlannedGuest, archive: Path) -> int:
        """Return a memfd of the initramfs with hostd's own archive for this guest behind it."""
        extra = handover.archive(guest, Regions(self.plan), self.plan.cluster.name, "", self.plan.guests)
        made = os.memfd_create(f"initrd-{guest.name}", os.MFD_CLOEXEC)
        with os.fdopen(extra, "rb") as behind, os.fdopen(os.dup(made), "wb") as file:
            first = archive.read_bytes()
            file.write(first + bytes(-len(first) % 4))
            behind.seek(0)
            file.write(behind.read())
        return made


class _Link(AgentLink):
    """The agent at the other end of a socket: there is one, and there will be no other."""

    def __init__(self, agent: socket.socket, name: str) -> None:
        super().__init__("", name)
        self._agent: socket.socket | None = agent

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        agent, self._agent = self._agent, None
        if agent is None:
            raise ConnectionError
        return await asyncio.open_connection(sock=agent)


async def _answering(link: AgentLink, machine: _Qemu) -> None:
    """Wait until a QEMU guest's agent answers. Raises BenchError, with what QEMU or its guest said last."""
    up = asyncio.ensure_future(link.wait_up(BOOT_LIMIT))
    try:
        while machine.process.poll() is None and not up.done():
            await asyncio.wait({up}, timeout=0.5)
        if up.done():
            up.result()
            return
        why = "ended"
    except AgentError:
        why = "does not answer"
    finally:
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)
    said = os.pread(machine.log, 1 << 16, 0).decode(errors="replace").split("\n")
    raise BenchError(f"{link.name} {why}; it said: {' / '.join(line.strip() for line in said if line.strip())[-500:]}")


def _vhost_workers(pids: Sequence[int]) -> list[int]:
    """Return the kernel's threads that serve the queues of QEMU processes: they are named by these."""
    names = {f"vhost-{pid}" for pid in pids}
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # It may just have ended.
            if path.read_text().strip() in names:
                found.append(int(path.parent.name))
    return found


def _runner(links: Mapping[str, AgentLink]) -> Run:
    async def run(guest: str, *command: str) -> bytes:
        try:
            async with asyncio.timeout(COMMAND_LIMIT):
                stream = await links[guest].exec(command, stdin=False)
                code, out, err = await terminal.collect(stream, b"")
        except TimeoutError:
            raise BenchError(f"{links[guest].name}: {command[0]} took more than {COMMAND_LIMIT:.0f} s") from None
        except AgentError as error:
            raise BenchError(str(error)) from None
        if code:
            said = (err or out).decode(errors="replace").strip()
            raise BenchError(f"{links[guest].name}: {' '.join(command)} ended with status {code}: {said[-500:]}")
        return out

    return run


def _die_with(parent: int) -> None:
    """Have this process end with the one that starts it, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
