"""One of two Python processes that bounce messages: `python -m hostd.bench.bounce.python_end ROLE KIND PLACE CPU`.

ROLE is ask or answer. Each line of standard input, "SIZE WARM_UP COUNT", is a job, told to both. Who asks writes COUNT
samples to standard output, 8 bytes each, ns. Every message that comes is compared as a whole with the one that was due.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
DIFFERENT = 64
"""messages that are made before the clock runs, and sent over and over"""

Ways = tuple[Callable[[bytes], object], Callable[[], bytes]]
"""what sends a message, and what receives one"""


class WrongMessageError(Exception):
    """A message that is not the one that was due."""


def messages(size: int) -> list[bytes]:
    """Return different messages of `size` bytes, numbered at both ends."""
    made = [number.to_bytes(8, "little") for number in range(DIFFERENT)]
    return [number + b"\1" * (size - 16) + number if size >= 16 else (number * 2)[:size] for number in made]


def ask(send: Callable[[bytes], object], receive: Callable[[], bytes], made: Sequence[bytes], count: int) -> array[int]:
    """Send `count` messages, each when the answer to the one before is there; return the times between two answers."""
    samples, clock, different = array("Q", bytes(8 * count)), time.perf_counter_ns, len(made)
    before = clock()
    for number in range(count):
        message = made[number % different]
        send(message)
        if receive() != message:
            raise WrongMessageError(f"another message came where number {number} was due")
        now = clock()
        samples[number] = now - before
        before = now
    return samples


def answer(send: Callable[[bytes], object], receive: Callable[[], bytes], made: Sequence[bytes], count: int) -> None:
    """Send back `count` messages."""
    different = len(made)
    for number in range(count):
        message = receive()
        if message != made[number % different]:
            raise WrongMessageError(f"another message came where number {number} was due")
        send(message)


# --- ways ---


def connection(asks: bool, place: str) -> Callable[[int], Ways]:
    """multiprocessing.Pipe, whose descriptor is `place`."""
    from multiprocessing.connection import Connection

    link = Connection(int(place))
    return lambda size: (link.send_bytes, link.recv_bytes)


def zeromq(asks: bool, place: str) -> Callable[[int], Ways]:
    """A pair of sockets, REQ and REP's way without their bookkeeping."""
    import zmq

    link = zmq.Context().socket(zmq.PAIR)
    link.connect(f"ipc://{place}") if asks else link.bind(f"ipc://{place}")
    return lambda size: (link.send, link.recv)


def channel(asks: bool, place: str, spin_ns: int | None = None) -> Callable[[int], Ways]:
    """Two channels of a region of shm."""
    import shm

    region = shm.Region.open(place)
    ways = {}
    for large in ("", "-large"):
        there, back = f"there{large}", f"back{large}"
        sender, receiver = region.sender(there if asks else back), region.receiver(back if asks else there)
        if spin_ns is not None:
            receiver.spin_ns = spin_ns
        ways[large] = sender.send, receiver.recv
    return lambda size: ways["-large" if size > 65536 else ""]


def iceoryx2(asks: bool, place: str) -> Callable[[int], Ways]:
    """Publish and subscribe of slices of bytes, both ways; who waits asks over and over, which is the quickest way."""
    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Error)
    config = iox.config.default()
    config.global_cfg.root_path = iox.Path.new(place)
    config.global_cfg.prefix = iox.FileName.new(f"{Path(place).parent.name}-")
    builder = iox.NodeBuilder.new().config(config).signal_handling_mode(iox.SignalHandlingMode.Disabled)
    node = builder.create(iox.ServiceType.Ipc)
    copy, move = ctypes.string_at, ctypes.memmove
    kept: dict[int, Any] = {}

    def service(name: str) -> Any:
        named = node.service_builder(iox.ServiceName.new(name))
        return named.publish_subscribe(iox.Slice[ctypes.c_uint8]).open_or_create()

    def ways(size: int) -> Ways:
        if size in kept:
            return kept[size][0]  # type: ignore[no-any-return]
        ours, theirs = ("there", "back") if asks else ("back", "there")
        subscriber = service(f"{theirs}/{size}").subscriber_builder().create()
        publisher = service(f"{ours}/{size}").publisher_builder().initial_max_slice_len(size).create()
        loan, take = publisher.loan_slice_uninit, subscriber.receive

        def send(message: bytes) -> None:
            sample = loan(size)
            move(sample.payload_ptr, message, size)
            if not sample.assume_init().send():  # The other side hasn't subscribed yet.
                time.sleep(0.001)
                send(message)

        def receive() -> bytes:
            while (sample := take()) is None:
                pass
            return copy(sample.payload_ptr, size)

        kept[size] = (send, receive), publisher, subscriber
        return send, receive

    return ways


KINDS: dict[str, Callable[[bool, str], Callable[[int], Ways]]] = {
    "connection": connection,
    "zeromq": zeromq,
    "channel": channel,
    "channel-sleep": lambda asks, place: channel(asks, place, spin_ns=0),
    "iceoryx2": iceoryx2,
}


def main(role: str, kind: str, place: str, cpu: str) -> int:
    """Do the jobs that standard input says."""
    # One that waits for a message would wait for ever if its starter died.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, {int(cpu)})
    asks = role == "ask"
    try:
        ways = KINDS[kind](asks, place)
        for line in sys.stdin:
            size, warm_up, count = map(int, line.split())
            send, receive = ways(size)
            if asks:
                sys.stdout.buffer.write(ask(send, receive, messages(size), warm_up + count)[warm_up:].tobytes())
                sys.stdout.buffer.flush()
            else:
                answer(send, receive, messages(size), warm_up + count)
    except (Exception, WrongMessageError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
