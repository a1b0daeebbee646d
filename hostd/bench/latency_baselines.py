"""What guests' round trips are held against: pairs of host processes that bounce numbered messages.

Each pair is started once and waits between its jobs, so that a measurement is short and has its rivals' right beside
it. The line, rings, eventfds, pipe and sockets are C (bounce/bounce_host.c, with the guests' compiler and its flags);
the others are Python (bounce/python_end.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import shm
from guestlib import build
from hostd.bench import BenchError
from hostd.bench.samples import Samples

HERE = Path(__file__).resolve().parent / "bounce"
SHM = Path(shm.__file__).resolve().parent
SHM_SOURCES = [SHM / "src" / f"{name}.c" for name in ("end", "bell", "state")]
PREFIX = "hostd-bench-"
"""of all that a run names: then its process, and something random"""
ANSWER_LIMIT = 120.0
"""seconds after which a pair that says nothing is given up"""
SMALL_RING, LARGE_RING, RING_STRUCT = 256 << 10, 4 << 20, 512


@dataclass(frozen=True)
class Kind:
    """A way for messages between two host processes and back."""

    name: str
    program: str
    """what its ends are told to use"""
    how: str
    language: str = "c"
    needs: str = ""
    """a Python package"""
    any_size: bool = True
    longest: int = 1 << 20
    """bytes of a message"""
    by_clock: bool = False
    """whether questions can go out by the clock"""


def _python(name: str, program: str, how: str, needs: str = "") -> Kind:
    return Kind(name, program, f"Python, {how}", language="python", needs=needs)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("cache_line", "line", "two host processes that bounce one cache line: the limit", any_size=False),
        Kind("host_ring", "ring", "the same rings, between two host processes that spin", by_clock=True),
        Kind(
            "host_ring_sleep",
            "sleep",
            "the same rings and bells, between two host processes that sleep at once",
            longest=64 << 10,
        ),
        Kind("eventfd", "eventfd", "two host processes, each blocked in read(2) of an eventfd", any_size=False),
        Kind("pipe", "bytes", "two pipes: write(2), read(2)", by_clock=True),
        Kind("unix_socket", "bytes", "Unix stream socket: write(2), read(2)", by_clock=True),
        Kind("tcp_loopback", "bytes", "TCP on 127.0.0.1 with TCP_NODELAY: write(2), read(2)", by_clock=True),
        _python("python_channel", "channel", "two channels of shm: send, recv, which spin 30 us before they sleep"),
        _python("python_channel_sleep", "channel-sleep", "two channels of shm: send, recv, which sleep at once"),
        _python("multiprocessing_pipe", "connection", "multiprocessing.Pipe: send_bytes, recv_bytes"),
        _python("zeromq_ipc", "zeromq", "pyzmq: two PAIR sockets over ipc://", "zmq"),
        _python("iceoryx2", "iceoryx2", "iceoryx2's binding: publish-subscribe of byte slices; both spin", "iceoryx2"),
    )
}


class Pair:
    """Two processes, and jobs for them. A context manager; its end is theirs."""

    def __init__(
        self, kind: Kind, asks: subprocess.Popen[bytes], answers: subprocess.Popen[bytes], ticks_per_ns: float
    ) -> None:
        self._kind, self._asks, self._answers, self._ticks_per_ns = kind, asks, answers, ticks_per_ns

    def bounce(self, size: int, count: int, *, warm_up: int = 0, interval_ns: int = 0) -> Samples:
        """Bounce messages of `size` bytes; return `count` round trips.

        `interval_ns`: questions go out by the clock (see Kind.by_clock), 0: in turn. Raises BenchError.
        """
        job = f"{size} {warm_up} {count}"
        if self._kind.language == "c":
            job += f" {round(interval_ns * self._ticks_per_ns)}"
        for process in (self._answers, self._asks):
            self._tell(process, job)
        times = array("Q", self._hear(8 * count))
        return Samples(times if self._kind.language == "python" else (time / self._ticks_per_ns for time in times))

    def close(self) -> None:
        """End both processes."""
        for process in (self._asks, self._answers):
            with contextlib.suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
        for process in (self._asks, self._answers):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for file in (process.stdout, process.stderr):
                if file is not None:
                    file.close()

    def _tell(self, process: subprocess.Popen[bytes], job: str) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(f"{job}\n".encode())
        except OSError:
            self._fail(process)

    def _hear(self, wanted: int) -> bytes:
        """Return `wanted` bytes of samples; notice when either process ends."""
        assert self._asks.stdout is not None
        said, deadline = bytearray(), time.monotonic() + ANSWER_LIMIT
        with selectors.DefaultSelector() as selector:
            selector.register(self._asks.stdout, selectors.EVENT_READ)
            while len(said) < wanted:
                if selector.select(0.5):
                    part = os.read(self._asks.stdout.fileno(), wanted - len(said))
                    if not part:
                        self._fail(self._asks)
                    said += part
                elif self._answers.poll() is not None:
                    self._fail(self._answers)
                elif time.monotonic() > deadline:
                    raise BenchError(f"{self._kind.name}: no answer came in {ANSWER_LIMIT:.0f} s")
        return bytes(said)

    def _fail(self, process: subprocess.Popen[bytes]) -> NoReturn:
        for one in (self._asks, self._answers):
            one.kill()
        _, said = process.communicate()
        last = said.decode(errors="replace").strip().splitlines()
        raise BenchError(f"{self._kind.name}: {last[-1] if last else 'its process ended'}")


class Pairs:
    """All pairs of one run, made when they are first asked for; a context manager that leaves nothing."""

    def __init__(self, cpus: Sequence[int], ticks_per_ns: float) -> None:
        self._cpus = (cpus[0], cpus[-1])
        self._ticks_per_ns = ticks_per_ns
        self._stack = contextlib.ExitStack()
        self._made: dict[str, Pair] = {}
        _remove_dead()
        prefix = f"{PREFIX}{os.getpid()}-"
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self, name: str) -> Pair:
        """Return the pair of kind `name`. Raises BenchError."""
        if name not in self._made:
            kind = KINDS[name]
            start = self._start_c if kind.language == "c" else self._start_python
            self._made[name] = self._stack.enter_context(contextlib.closing(start(kind)))
        return self._made[name]

    def _start_c(self, kind: Kind) -> Pair:
        program = str(self._program())
        ours, theirs = DESCRIPTORS[kind.name]()
        try:
            ends = [
                _popen([program, role, kind.program, str(cpu), *map(str, fds)], fds)
                for role, cpu, fds in zip(("ask", "answer"), self._cpus, (ours, theirs), strict=True)
            ]
        finally:
            for fd in {*ours, *theirs}:
                os.close(fd)
        return Pair(kind, ends[0], ends[1], self._ticks_per_ns)

    def _start_python(self, kind: Kind) -> Pair:
        places, passed = self._places(kind)
        command = [sys.executable, "-m", "hostd.bench.bounce.python_end"]
        try:
            ends = [
                _popen([*command, role, kind.program, place, str(cpu)], fds)
                for role, place, cpu, fds in zip(("ask", "answer"), places, self._cpus, passed, strict=True)
            ]
        finally:
            for fds in passed:
                for fd in fds:
                    os.close(fd)
        return Pair(kind, ends[0], ends[1], self._ticks_per_ns)

    def _places(self, kind: Kind) -> tuple[list[str], list[list[int]]]:
        """Return where each end finds the other, and the descriptors it is handed."""
        if kind.program == "connection":
            ours, theirs = _socket_pair()
            return [str(ours[0]), str(theirs[0])], [ours[:1], theirs[:1]]
        place = str(self._folder / kind.program)
        if kind.program.startswith("channel"):
            sizes = {"": SMALL_RING, "-large": LARGE_RING}
            specs = [
                shm.ChannelSpec(f"{way}{large}", size=sizes[large]) for way in ("there", "back") for large in sizes
            ]
            place = f"{self._folder.name}/{kind.program}"
            self._stack.enter_context(shm.Region.create(place, channels=specs))
        elif kind.program == "iceoryx2":
            self._stack.callback(_sweep_iceoryx, Path(place))
        return [place, place], [[], []]

    def _program(self) -> Path:
        program = self._folder / "bounce_host"
        if not program.exists():
            compiler = build.toolchain()
            if compiler is None:
                raise BenchError("no C compiler found; install gcc (apt-get install gcc) or set CC")
            includes = [f"-I{folder}" for folder in (*build.INCLUDES, SHM / "src")]
            flags = ["-std=gnu11", "-O3", *(build.AVX2 if build.has_avx2() else []), *includes]
            command = [compiler, *flags, "-o", str(program), *map(str, [HERE / "bounce_host.c", *SHM_SOURCES])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(f"bounce_host.c does not compile:\n{done.stderr.strip()}")
        return program


def missing(kind: Kind) -> str | None:
    """Say in one sentence why `kind` can't be measured here, or None."""
    if kind.needs and importlib.util.find_spec(kind.needs) is None:
        return f"{kind.name} was left out: Python has no module {kind.needs} here; pip install 'hostd[bench]' has it."
    return None


def _popen(command: Sequence[str], fds: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=list(fds),
        # Ctrl-C is for who runs the benchmark, and he ends these.
        start_new_session=True,
    )


# --- what a C program's ends are handed: descriptors of who asks, and of who answers; closed when both were started ---

Descriptors = tuple[list[int], list[int]]


def _memory(bells: bool = False) -> Descriptors:
    memory = os.memfd_create("hostd-bench", os.MFD_CLOEXEC)
    os.ftruncate(memory, 2 * (SMALL_RING + LARGE_RING + 2 * RING_STRUCT) + mmap.PAGESIZE)
    fds = [memory, *(os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2 if bells else 0))]
    return fds, fds


def _pipes() -> Descriptors:
    (there_in, there_out), (back_in, back_out) = os.pipe(), os.pipe()
    return [there_out, back_in], [back_out, there_in]


def _socket_pair() -> Descriptors:
    return _twice(*socket.socketpair())


def _tcp() -> Descriptors:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _twice(one, other)


def _twice(one: socket.socket, other: socket.socket) -> Descriptors:
    ours, theirs = one.detach(), other.detach()
    return [ours, ours], [theirs, theirs]


DESCRIPTORS: dict[str, Callable[[], Descriptors]] = {
    "cache_line": _memory,
    "host_ring": _memory,
    "host_ring_sleep": lambda: _memory(bells=True),
    "eventfd": lambda: _memory(bells=True),
    "pipe": _pipes,
    "unix_socket": _socket_pair,
    "tcp_loopback": _tcp,
}


def _remove_dead() -> None:
    """Remove what runs left that were killed."""
    found = [*Path(tempfile.gettempdir()).glob(f"{PREFIX}*"), *Path("/dev/shm").glob(f"*{PREFIX}*")]
    for path in found:
        number = re.search(rf"{PREFIX}(\d+)-", path.name)
        if number is None or Path("/proc", number[1]).exists():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sweep_iceoryx(folder: Path) -> None:
    """Remove what iceoryx2's processes left; their segments' names begin with the folder's that it is in."""
    shutil.rmtree(folder, ignore_errors=True)
    for left in Path("/dev/shm").glob(f"{folder.parent.name}-*"):
        left.unlink(missing_ok=True)
