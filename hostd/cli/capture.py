"""hostd capture"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, Protocol

import hostd
from hostd.cli.command import print_json
from hostd.cli.mac import mac_address
from net.errors import NetError

if TYPE_CHECKING:
    from net.capture import Capture, Captured

EXAMPLES = (
    "hostd capture pair/lan",
    "hostd capture pair/lan -w frames.pcapng --seconds 10",
    "hostd capture pair/lan --port web --mac 02:00:00:00:00:01 --count 100",
    "hostd capture pair/lan -w - | tshark -i -",
)
SLICE = 0.2
"""seconds between two looks at the clock, and at a signal"""
ETHERNET_TYPES = 0x600
"""from here on they are types; below, lengths"""
TYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x8100: "VLAN", 0x88CC: "LLDP"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", metavar="CLUSTER/NETWORK", help="as `hostd net ls` shows them")
    parser.add_argument("-w", "--write", metavar="FILE", help="write pcapng, for tshark or Wireshark; -: to the output")
    parser.add_argument("--port", action="append", default=[], help="only frames from or to it; may be repeated")
    parser.add_argument(
        "--mac", action="append", default=[], type=mac_address, help="only frames from or to it; may be repeated"
    )
    parser.add_argument("--snap", type=_count, default=0, metavar="BYTES", help="keep so much of each (default: all)")
    parser.add_argument("--count", type=_count, metavar="N", help="end after so many frames")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="end after so long")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")
    return seconds


class Output(Protocol):
    """Where frames go."""

    def take(self, frames: list[Captured]) -> None:
        """Show or write some."""

    def end(self, count: int, lost: int) -> None:
        """Finish, after `count` frames; `lost` found no room."""


def run(options: argparse.Namespace) -> int:
    from net.capture import Capture

    if options.json and options.write == "-":
        raise NetError("-w - has the output already; give --json or that")
    with (
        Capture(options.network, ports=options.port, macs=options.mac, snap=options.snap) as capture,
        _output(options, capture) as output,
        _until_told() as told,
    ):
        count = 0
        try:
            for frames in _batches(capture, options, told):
                output.take(frames)
                count += len(frames)
        finally:
            output.end(count, _lost(capture))
    return 0


def _lost(capture: Capture) -> int:
    try:
        return capture.lost_now()
    except NetError:  # Its switch has ended: there may have been more.
        return capture.lost


def _batches(capture: Capture, options: argparse.Namespace, told: list[int]) -> Iterator[list[Captured]]:
    """Yield frames until there were enough of them, the time is over, or a signal came."""
    left = options.count
    deadline = None if options.seconds is None else time.monotonic() + options.seconds
    while not told:
        now = time.monotonic()
        if left == 0 or (deadline is not None and now >= deadline):
            return
        frames = capture.frames(SLICE if deadline is None else min(SLICE, deadline - now))[:left]
        if left is not None:
            left -= len(frames)
        if frames:
            yield frames


@contextmanager
def _until_told() -> Iterator[list[int]]:
    """Have Ctrl-C and SIGTERM end the capture in good order: they are put into the list."""
    told: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _output(options: argparse.Namespace, capture: Capture) -> Iterator[Output]:
    if options.write is None:
        yield JsonLines(capture) if options.json else Lines(capture)
    elif options.write == "-":
        yield Pcapng(capture, sys.stdout.buffer, options)
    else:
        with Path(options.write).open("wb") as file:
            yield Pcapng(capture, file, options)


class Lines:
    """A line for each frame."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def take(self, frames: list[Captured]) -> None:
        """Print when, ports, addresses, type and size of each."""
        port = self._capture.port
        for frame in frames:
            seconds, ns = divmod(frame.time_ns, 1_000_000_000)
            clock = time.strftime("%H:%M:%S", time.localtime(seconds))
            to, source = frame.data[:6].hex(":"), frame.data[6:12].hex(":")
            ports = f"{port(frame.source)} > {port(frame.to)}"
            print(f"{clock}.{ns:09}  {ports}  {source} > {to}  {_type(frame.data)} {frame.size}")
        sys.stdout.flush()

    def end(self, count: int, lost: int) -> None:
        """Say it where it is not taken for a frame."""
        print(_sentence(count, lost), file=sys.stderr)


class JsonLines:
    """A line of JSON for each frame."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def take(self, frames: list[Captured]) -> None:
        """Print what is known of each."""
        port = self._capture.port
        for frame in frames:
            known = {"time_ns": frame.time_ns, "from": port(frame.source), "to": port(frame.to), "size": frame.size}
            print(json.dumps(known | {"lost": frame.lost, "offload": frame.offload.hex(), "data": frame.data.hex()}))
        sys.stdout.flush()

    def end(self, count: int, lost: int) -> None:
        """Nothing: each line tells what was lost before it."""


class Pcapng:
    """A file for tshark and Wireshark: an interface for each port that frames came from."""

    def __init__(self, capture: Capture, file: BinaryIO, options: argparse.Namespace) -> None:
        from net.pcapng import Writer

        self._capture = capture
        self._file = file
        self._options = options
        self._writer = Writer(file, f"hostd {hostd.__version__}")
        self._interfaces: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self._lost = 0
        file.flush()

    def take(self, frames: list[Captured]) -> None:
        """Write them, and have a reader of a pipe see them."""
        for frame in frames:
            interface = self._interfaces.get(frame.source)
            if interface is None:
                interface = self._interface(frame.source)
            self._writer.packet(interface, frame.time_ns, frame.data, frame.size, frame.lost - self._lost)
            self._received[interface] += 1
            self._lost = frame.lost
        self._file.flush()

    def _interface(self, number: int) -> int:
        port = self._capture.describe(number)
        about = f"{port['kind']} port of {self._capture.network}"
        interface = self._writer.interface(port["name"], about, self._options.snap)
        self._interfaces[number], self._received[interface] = interface, 0
        return interface

    def end(self, count: int, lost: int) -> None:
        """Write the statistics, and say how it went."""
        now = time.time_ns()
        for interface, received in self._received.items():
            self._writer.statistics(interface, now, received)
        self._file.flush()
        if self._options.json:
            print_json({"file": self._options.write, "frames": count, "lost": lost})
        else:
            print(_sentence(count, lost), file=sys.stderr)


def _type(data: bytes) -> str:
    number = int.from_bytes(data[12:14])
    return TYPES.get(number, f"{number:#06x}" if number >= ETHERNET_TYPES else "802.3")


def _sentence(count: int, lost: int) -> str:
    return f"{count} frames{f', {lost} more came too fast to be kept' if lost else ''}"
