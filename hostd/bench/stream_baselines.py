"""What guests' throughput is held against: pairs of host processes that send each other numbered messages one way.

Each pair is started once and waits between its jobs, so that a measurement is short and has its rivals' right beside
it. Rings, memcpy, pipe and sockets are C (stream/stream_host.c, with the guests' compiler and its flags); the others
are Python (stream/python_end.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import shm
from guestlib import build
from hostd.bench import BenchError

HERE = Path(__file__).resolve().parent / "stream"
ANSWER_LIMIT = 120.0
"""seconds after which a pair that says nothing is given up"""
SMALL_RING, LARGE_RING, PLACE_RING = 256 << 10, 4 << 20, 64 << 20
SMALL, LONGEST = 8192, 1 << 20
"""messages up to SMALL bytes go by the small ring"""
RING_STRUCT = 512
BATCH_RING = 1 << 20


@dataclass(frozen=True)
class Kind:
    """A way for messages between two host processes."""

    name: str
    program: str
    """what its ends are told to use"""
    how: str
    library: bool = False
    """what a user would take instead of hostd"""
    needs: str = ""
    """a Python package"""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("host_ring", "ring", "the same ring, between two host processes"),
        Kind("host_in_place", "place", "as guests_in_place, between two host processes"),
        Kind("memcpy", "memcpy", "one thread that copies each message into the memory of a ring, and out again"),
        Kind("pipe", "bytes", "pipe(2): a write for each message, reads of all that is there", library=True),
        Kind("unix_socket", "bytes", "Unix stream socket, as pipe", library=True),
        Kind(
            "tcp_loopback",
            "bytes",
            "TCP on 127.0.0.1, as pipe; the kernel joins small writes, but none waits at the end",
            library=True,
        ),
        Kind("multiprocessing_pipe", "connection", "Python: send_bytes, recv_bytes", library=True),
        Kind("zeromq_ipc", "zeromq", "Python, pyzmq: PUSH to PULL over ipc://", library=True, needs="zmq"),
        Kind(
            "iceoryx2",
            "iceoryx2",
            "Python, iceoryx2's binding: publish-subscribe of byte slices, nothing dropped, the subscriber spins",
            library=True,
            needs="iceoryx2",
        ),
        Kind("python_channel", "channel", "Python, a channel of shm: send, recv"),
        Kind("python_batches", "batches", "Python, a channel of shm: send_many of 512 at a time, recv_many"),
    )
}


class Pair:
    """Two processes, and jobs for them. A context manager; its end is theirs."""

    def __init__(self, name: str, sender: subprocess.Popen[bytes], receiver: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._sender, self._receiver = sender, receiver
        self._said = b""

    def rate(self, size: int, count: int) -> float:
        """Send `count` messages of `size` bytes; return how many came a second. Raises BenchError."""
        job = b"%d %d\n" % (size, count)
        self._tell(self._receiver, job)
        self._hear("ready")
        if self._sender is not self._receiver:
            self._tell(self._sender, job)
        ns, messages = map(int, self._hear().split())
        return messages / ns * 1e9 if ns and messages else 0.0

    def close(self) -> None:
        """End both processes."""
        for process in {self._sender, self._receiver}:
            with contextlib.suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
        for process in {self._sender, self._receiver}:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for file in (process.stdout, process.stderr):
                if file is not None:
                    file.close()

    def _tell(self, process: subprocess.Popen[bytes], job: bytes) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(job)
        except OSError:
            self._fail(process)

    def _hear(self, expected: str = "") -> str:
        """Return the receiver's next line; notice when either process ends."""
        assert self._receiver.stdout is not None
        deadline = time.monotonic() + ANSWER_LIMIT
        with selectors.DefaultSelector() as selector:
            selector.register(self._receiver.stdout, selectors.EVENT_READ)
            while b"\n" not in self._said:
                if selector.select(0.5):
                    said = os.read(self._receiver.stdout.fileno(), 4096)
                    if not said:
                        self._fail(self._receiver)
                    self._said += said
                elif self._sender.poll() is not None:
                    self._fail(self._sender)
                elif time.monotonic() > deadline:
                    raise BenchError(f"{self.name}: no message got through in {ANSWER_LIMIT:.0f} s")
        line, _, self._said = self._said.partition(b"\n")
        if expected not in line.decode():
            self._fail(self._receiver)
        return line.decode()

    def _fail(self, process: subprocess.Popen[bytes]) -> NoReturn:
        for one in (self._sender, self._receiver):
            one.kill()
        _, said = process.communicate()
        last = said.decode(errors="replace").strip().splitlines()
        raise BenchError(f"{self.name}: {last[-1] if last else 'its process ended'}")


class Pairs:
    """All pairs of one run, made when they are first asked for; a context manager that leaves nothing."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = (cpus[0], cpus[-1])
        self._stack = contextlib.ExitStack()
        self._made: dict[str, Pair] = {}
        _sweep_dead()
        made = tempfile.TemporaryDirectory(prefix=f"hostd-bench-{os.getpid()}-")
        self._folder = Path(self._stack.enter_context(made))

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def missing(self, kind: Kind) -> str | None:
        """Say in one sentence why `kind` can't be measured here, or None."""
        if kind.needs and importlib.util.find_spec(kind.needs) is None:
            return (
                f"{kind.name} was left out: Python has no module {kind.needs} here; pip install 'hostd[bench]' has it."
            )
        return None

    def get(self, name: str) -> Pair:
        """Return the pair of kind `name`. Raises BenchError, BuildError."""
        if name not in self._made:
            kind = KINDS[name]
            start = self._start_c if kind.program in ("ring", "place", "bytes", "memcpy") else self._start_python
            self._made[name] = self._stack.enter_context(contextlib.closing(start(kind)))
        return self._made[name]

    def _start_c(self, kind: Kind) -> Pair:
        program = str(self._program())
        with _descriptors(kind) as (ours, theirs):
            cpu = self._cpus[0]
            sender = _popen([program, "send", kind.program, str(ours), str(cpu)], [ours])
            if kind.program == "memcpy":
                return Pair(kind.name, sender, sender)
            cpu = self._cpus[1]
            return Pair(kind.name, sender, _popen([program, "receive", kind.program, str(theirs), str(cpu)], [theirs]))

    def _start_python(self, kind: Kind) -> Pair:
        passed: tuple[list[int], list[int]] = [], []
        with contextlib.ExitStack() as handed:
            if kind.program == "connection":
                ours, theirs = handed.enter_context(_descriptors(kind))
                places, passed = (str(ours), str(theirs)), ([ours], [theirs])
            else:
                where = str(self._folder / kind.program)
                if kind.program in ("channel", "batches"):
                    where = f"bench/{kind.program}-{os.getpid()}"
                    specs = [shm.ChannelSpec("small", size=BATCH_RING), shm.ChannelSpec("large", size=LARGE_RING)]
                    self._stack.enter_context(shm.Region.create(where, channels=specs))
                elif kind.program == "iceoryx2":
                    self._stack.callback(_sweep_iceoryx, Path(where))
                places = (where, where)
            ends = [
                _popen(
                    [sys.executable, "-m", "hostd.bench.stream.python_end", role, kind.program, place, str(cpu)], fds
                )
                for role, place, cpu, fds in zip(("send", "receive"), places, self._cpus, passed, strict=True)
            ]
            return Pair(kind.name, ends[0], ends[1])

    def _program(self) -> Path:
        program = self._folder / "stream_host"
        if not program.exists():
            compiler = build.toolchain()
            if compiler is None:
                raise BenchError("no C compiler found; install gcc (apt-get install gcc) or set CC")
            flags = [
                "-std=gnu11",
                "-O3",
                *(build.AVX2 if build.has_avx2() else []),
                *(f"-I{i}" for i in build.INCLUDES),
            ]
            command = [compiler, *flags, "-o", str(program), str(HERE / "stream_host.c")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(f"stream_host.c does not compile:\n{done.stderr.strip()}")
        return program


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


@contextlib.contextmanager
def _descriptors(kind: Kind) -> Iterator[tuple[int, int]]:
    """Give the sender's and the receiver's end of what `kind` goes over; closed here when both were started."""
    make: dict[str, Callable[[], tuple[int, int]]] = {
        "pipe": lambda: os.pipe()[::-1],
        "unix_socket": lambda: _detached(*socket.socketpair()),
        "tcp_loopback": _tcp,
        "multiprocessing_pipe": lambda: _detached(*socket.socketpair()),
    }
    ours, theirs = make.get(kind.name, lambda: _ring_memory(kind))()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def _detached(one: socket.socket, other: socket.socket) -> tuple[int, int]:
    return one.detach(), other.detach()


def _tcp() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return _detached(one, other)


def _ring_memory(kind: Kind) -> tuple[int, int]:
    sizes = (PLACE_RING,) if kind.program == "place" else (SMALL_RING, LARGE_RING)
    memory = os.memfd_create("hostd-bench", os.MFD_CLOEXEC)
    os.ftruncate(memory, sum(size + RING_STRUCT for size in sizes) + mmap.PAGESIZE)
    return memory, os.dup(memory)


def _sweep_iceoryx(folder: Path) -> None:
    """Remove what iceoryx2's processes left; their segments' names begin with the prefix they were told."""
    shutil.rmtree(folder, ignore_errors=True)
    for left in Path("/dev/shm").glob(f"hostd-bench-{os.getpid()}-*"):
        left.unlink(missing_ok=True)


def _sweep_dead() -> None:
    """Remove what a benchmark that was killed could not: its name says which process it was."""
    for place in (Path(tempfile.gettempdir()), Path("/dev/shm")):
        for left in place.glob("hostd-bench-*-*"):
            pid = left.name.split("-")[2]
            if not pid.isdecimal() or Path("/proc", pid).exists():
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
