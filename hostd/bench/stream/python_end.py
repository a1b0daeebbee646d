"""One of two Python processes that send numbered messages: `python -m ...python_end ROLE KIND PLACE CPU`.

Each line of standard input, "SIZE COUNT", is a job; the receiver says "ready", and then "NS MESSAGES": how long those
after the first took. Messages are made before the clock runs, some with different numbers, sent over and over; each
that comes is compared with what is due: all its bytes, or of a long one the number.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import shm
from hostd.bench.stream_baselines import SMALL

PR_SET_PDEATHSIG = 1
BATCH = 512
COMPARED = 4096
"""bytes up to which a message is compared as a whole"""
MADE = 4 << 20
ZEROMQ_COPY = 64 << 10
"""from here on pyzmq is told not to copy, which then is faster"""


class WrongMessageError(Exception):
    """A message that is not the one that was due."""


def messages(size: int) -> list[bytes]:
    """Return as many different messages of `size` bytes as make sense to keep, a whole number of batches if small."""
    count = BATCH * 2 if size <= SMALL else max(4, MADE // size)
    return [number.to_bytes(8, "little") + b"\1" * (size - 8) for number in range(count)]


def check(got: Any, due: bytes) -> None:
    """Compare a message that came with the one that was due. Raises WrongMessageError."""
    if (got != due) if len(due) <= COMPARED else (len(got) != len(due) or got[:8] != due[:8]):
        raise WrongMessageError(f"message {bytes(due[:8]).hex()} was due, {bytes(got[:8]).hex()} came")


class Connection:
    """multiprocessing.Pipe."""

    def __init__(self, role: str, place: str) -> None:
        from multiprocessing.connection import Connection

        self._link = Connection(int(place))

    def prepare(self, size: int) -> None:
        """Nothing depends on the size."""

    def send(self, made: Sequence[bytes], count: int) -> None:
        send, different = self._link.send_bytes, len(made)
        for number in range(count):
            send(made[number % different])

    def receive(self, made: Sequence[bytes], count: int) -> tuple[int, int]:
        return one_by_one(self._link.recv_bytes, made, count)


class ZeroMq:
    """PUSH to PULL."""

    def __init__(self, role: str, place: str) -> None:
        import zmq

        context = zmq.Context()
        self._socket = context.socket(zmq.PUSH if role == "send" else zmq.PULL)
        address = f"ipc://{place}"
        self._socket.bind(address) if role == "receive" else self._socket.connect(address)

    def prepare(self, size: int) -> None:
        """Nothing depends on the size."""

    def send(self, made: Sequence[bytes], count: int) -> None:
        different, copy = len(made), len(made[0]) < ZEROMQ_COPY
        send: Any = self._socket.send
        for number in range(count):
            send(made[number % different], copy=copy)

    def receive(self, made: Sequence[bytes], count: int) -> tuple[int, int]:
        if len(made[0]) < ZEROMQ_COPY:
            return one_by_one(self._socket.recv, made, count)
        return one_by_one(lambda: self._socket.recv(copy=False).buffer, made, count)


class Iceoryx2:
    """Publish-subscribe of slices of bytes; the publisher tries again where the subscriber's buffer is full."""

    def __init__(self, role: str, place: str) -> None:
        import iceoryx2

        self._iceoryx2, self._role = iceoryx2, role
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        config = iceoryx2.config.default()
        settings = config.global_cfg
        settings.root_path = iceoryx2.Path.new(place)
        settings.prefix = iceoryx2.FileName.new(f"hostd-bench-{os.getppid()}-")
        self._node = (
            iceoryx2.NodeBuilder.new()
            .config(config)
            .signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
            .create(iceoryx2.ServiceType.Ipc)
        )
        self._ports: dict[int, Any] = {}

    def prepare(self, size: int) -> None:
        if size in self._ports:
            return
        iox = self._iceoryx2
        service = (
            self._node.service_builder(iox.ServiceName.new(f"stream/{size}"))
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(max(8, min(1024, MADE // size)))
            .open_or_create()
        )
        if self._role == "receive":
            port = service.subscriber_builder().create()
        else:
            port = (
                service.publisher_builder()
                .initial_max_slice_len(size)
                .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
                .create()
            )
        self._ports[size] = service, port

    def send(self, made: Sequence[bytes], count: int) -> None:
        size, different, move = len(made[0]), len(made), ctypes.memmove
        loan = self._ports[size][1].loan_slice_uninit
        for number in range(count):
            reached = 0
            # It waits for a while where the buffer is full, and then gives the message up.
            while not reached:
                sample = loan(size)
                move(sample.payload_ptr, made[number % different], size)
                reached = sample.assume_init().send()

    def receive(self, made: Sequence[bytes], count: int) -> tuple[int, int]:
        size, copy = len(made[0]), ctypes.string_at
        take = self._ports[size][1].receive

        def receive() -> bytes:
            while (sample := take()) is None:
                pass
            return copy(sample.payload_ptr, size)

        return one_by_one(receive, made, count)


class Channel:
    """A channel of shm, message by message."""

    def __init__(self, role: str, place: str) -> None:
        self._region = shm.Region.open(place)
        join = self._region.sender if role == "send" else self._region.receiver
        self._ends: dict[bool, Any] = {True: join("small"), False: join("large")}

    def prepare(self, size: int) -> None:
        """Nothing depends on the size."""

    def send(self, made: Sequence[bytes], count: int) -> None:
        send, different = self._end(made).send, len(made)
        for number in range(count):
            send(made[number % different])

    def receive(self, made: Sequence[bytes], count: int) -> tuple[int, int]:
        return one_by_one(self._end(made).recv, made, count)

    def _end(self, made: Sequence[bytes]) -> Any:
        return self._ends[len(made[0]) <= SMALL]


class Batches(Channel):
    """A channel of shm, many messages at a time."""

    def send(self, made: Sequence[bytes], count: int) -> None:
        end, different = self._end(made), len(made)
        batches = [made[at : at + BATCH] for at in range(0, different, BATCH)]
        for _ in range(count // different):
            for batch in batches:
                end.send_many(batch)
        end.send_many(made[: count % different])

    def receive(self, made: Sequence[bytes], count: int) -> tuple[int, int]:
        end, different = self._end(made), len(made)
        due = [*made, *made]
        whole = len(made[0]) <= COMPARED
        done, start, timed = 0, 0, 0
        while done < count:
            got = end.recv_many(min(different, count - done))
            at = done % different
            # Lists compare in C, and stop at the first difference.
            if not (whole and got == due[at : at + len(got)]):
                for one, wanted in zip(got, due[at : at + len(got)], strict=True):
                    check(one, wanted)
            done += len(got)
            if not start:
                start, timed = time.perf_counter_ns(), count - done
        return time.perf_counter_ns() - start, timed


def one_by_one(receive: Callable[[], Any], made: Sequence[bytes], count: int) -> tuple[int, int]:
    """Receive and check `count` messages; return the ns and number of those after the first."""
    different = len(made)
    check(receive(), made[0])
    start = time.perf_counter_ns()
    if len(made[0]) <= COMPARED:
        for number in range(1, count):
            if receive() != made[number % different]:
                raise WrongMessageError(f"another message came where number {number} was due")
    else:
        for number in range(1, count):
            check(receive(), made[number % different])
    return time.perf_counter_ns() - start, count - 1


ENDS: dict[str, Callable[[str, str], Any]] = {
    "connection": Connection,
    "zeromq": ZeroMq,
    "iceoryx2": Iceoryx2,
    "channel": Channel,
    "batches": Batches,
}


def main(role: str, kind: str, place: str, cpu: str) -> int:
    """Do the jobs that standard input says."""
    # One that waits for a message would wait for ever if its starter died.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, {int(cpu)})
    try:
        end = ENDS[kind](role, place)
        for line in sys.stdin:
            size, count = map(int, line.split())
            made = messages(size)
            end.prepare(size)
            if role == "send":
                end.send(made, count)
            else:
                print("ready", flush=True)
                print(*end.receive(made, count), flush=True)
    except (Exception, WrongMessageError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
