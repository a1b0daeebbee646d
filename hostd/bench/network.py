"""The switch: frames a second by vhost-user and ring ports beside dpdk-testpmd, a frame's latency, a capture's cost.

What forwards has one processor, its clients another one. Everything is measured in turn, in short pieces, so that
figures that are compared were taken within the same fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from hostd.bench import BenchError
from hostd.bench.network_copy import Copier
from hostd.bench.network_rounds import Round, Rounds, take
from hostd.bench.network_spinner import Spinner
from hostd.bench.network_switch import MACS, Switch
from hostd.bench.network_testpmd import Testpmd, huge_pages, missing
from hostd.bench.network_traffic import QUEUE, Passed, Traffic
from hostd.bench.report import Figure, Report, Series
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.doctor.probe import KvmKind, kvm_kind
from hostd.kvm import KvmError
from net.capture import Capture
from net.errors import NetError

EXAMPLES = (
    "hostd bench network",
    "hostd bench network --rounds 10 --json",
    "hostd bench network --cpus 3,2 --size 1500",
)
PIECES = 8
"""each way's time in a round comes in so many pieces, in turn with the others'"""
SWEEP = (64, 128, 256, 512, 1024, 1514)
NOBODY = b"\x02\0\0\0\0\x7f"
"""an address that no frame has"""
LATENCY_ROUNDS = 20_000
WAYS = {
    "vhost": "hostd's switch, from vhost-user port to vhost-user port",
    "testpmd": "dpdk-testpmd in io mode, between two net_vhost ports",
    "ring": "hostd's switch, from ring port to ring port",
    "copy": "a loop that copies each message from one ring to another one, and decides nothing",
    "ring_capture": "hostd's switch, from ring port to ring port, with a capture whose filter takes nothing",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what may be chosen."""
    parser.add_argument("--size", type=_size, default=64, help="bytes of a frame without its checksum (default: 64)")
    parser.add_argument("--seconds", type=_seconds, default=0.4, help="of each measurement in a round (default: 0.4)")
    parser.add_argument(
        "--cpus",
        type=_cpus,
        help="the forwarder's processor and its clients', as 1,0 (default: the last and the first)",
    )
    parser.add_argument(
        "--messages",
        type=int,
        default=LATENCY_ROUNDS,
        help=f"a latency is the median of so many (default: {LATENCY_ROUNDS})",
    )


def _size(text: str) -> int:
    size = int(text)
    if not 32 <= size <= 1514:
        raise argparse.ArgumentTypeError(f"{size} bytes; frames of 32 to 1514 are possible")
    return size


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.05 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{seconds} s; 0.05 to 60 are possible")
    return seconds


def _cpus(text: str) -> tuple[int, int]:
    try:
        forwarder, clients = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; two numbers are wanted, as 1,0") from None
    return forwarder, clients


def _choose(wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Return the forwarder's processor and the clients'. Raises BenchError."""
    there = sorted(os.sched_getaffinity(0))
    if len(there) < 2:
        raise BenchError("one processor is not enough: what forwards and its clients need one each, as they spin")
    forwarder, clients = wanted or (there[-1], there[0])
    for cpu in (forwarder, clients):
        if cpu not in there:
            raise BenchError(f"--cpus {forwarder},{clients}: there is no processor {cpu} here, only {there}")
    if forwarder == clients:
        raise BenchError(f"--cpus {forwarder},{clients}: what forwards and its clients need a processor each")
    return forwarder, clients


# --- rates ---


@dataclass
class Bench:
    """All that forwards, set up and idle; `run` has one of them forward."""

    forwarder: int
    clients: int
    stack: ExitStack
    notes: list[str] = field(default_factory=list)
    ways: dict[str, Callable[[int, float], Passed]] = field(default_factory=dict)
    passed: dict[str, list[Passed]] = field(default_factory=dict)

    def set_up(self) -> None:
        """Start what forwards. Raises BenchError or NetError."""
        copier = self.stack.enter_context(Copier(self.forwarder))  # Forked before there are threads.
        self._spinner("copy", copier, self.stack.enter_context(Traffic.by_rings(copier.regions)))
        switch = self.stack.enter_context(Switch(self.forwarder))
        paths = [switch.vhost(name, mac) for name, mac in zip("ab", MACS, strict=True)]
        queues = self.stack.enter_context(Traffic.by_queues(paths))
        self.ways["vhost"] = self._way(queues, switch.pid)
        self._testpmd()
        other = self.stack.enter_context(Switch(self.forwarder, network="rings"))
        regions = [other.ring(name, mac) for name, mac in zip("ab", MACS, strict=True)]
        rings = self.stack.enter_context(Traffic.by_rings(regions))
        plain = self.ways["ring"] = self._way(rings, other.pid)

        def captured(size: int, seconds: float) -> Passed:
            with Capture(other.name, macs=[NOBODY], room=1 << 20):
                return plain(size, seconds)

        self.ways["ring_capture"] = captured

    def _testpmd(self) -> None:
        why = missing()
        if why is not None:
            self.notes.append(f"testpmd is left out: {why}.")
            return
        without = self.stack.enter_context(huge_pages())
        try:
            testpmd = self.stack.enter_context(Testpmd(self.forwarder, huge=without is None))
        except BenchError as error:
            self.notes.append(f"testpmd is left out: {error}.")
            return
        if without is not None:
            self.notes.append(f"{without}.")
        self._spinner("testpmd", testpmd, self.stack.enter_context(Traffic.by_queues(testpmd.paths)))

    def _spinner(self, name: str, spinner: Spinner, traffic: Traffic) -> None:
        plain = self._way(traffic, spinner.pid)
        plain(64, 0.02)  # Until it has come up.
        spinner.pause()

        def awake(size: int, seconds: float) -> Passed:
            with spinner.running():
                return plain(size, seconds)

        self.ways[name] = awake

    def _way(self, traffic: Traffic, pid: int) -> Callable[[int, float], Passed]:
        return lambda size, seconds: traffic.run(self.clients, pid, size, seconds)

    def run(self, size: int, seconds: float) -> Round:
        """Let each forward for `seconds`, in pieces, in turn; return frames a second of each."""
        found: dict[str, list[Passed]] = {name: [] for name in self.ways}
        for number in range(PIECES):
            for name in list(self.ways)[:: -1 if number % 2 else 1]:
                found[name].append(self.ways[name](size, seconds / PIECES))
        for name, pieces in found.items():
            self.passed.setdefault(name, []).extend(pieces)
        wall = {name: _rate(pieces, lambda one: one.wall_ns) for name, pieces in found.items()}
        cpu = {f"{name}_cpu": _rate(pieces, lambda one: one.forwarder_ns) for name, pieces in found.items()}
        idle = {f"{name}_idle": statistics.fmean(one.idle for one in pieces) for name, pieces in found.items()}
        return Round(wall | cpu | idle, [piece.per_wall_second for piece in found["copy"]])

    def sweep(self, seconds: float, tell: Tell) -> list[Series]:
        """Return each one's rates by the size of frames."""
        names = [name for name in WAYS if name in self.ways and name != "ring_capture"]
        rates: dict[str, list[float]] = {name: [] for name in names}
        for size in SWEEP:
            tell(f"frames of {size} bytes")
            for name in names:
                rates[name].append(self.ways[name](size, seconds / PIECES).per_cpu_second)
        axes = {"x_label": "bytes of a frame", "y_label": "frames a second of the forwarder's processor"}
        return [
            Series(chart="frames a second by size", line=name, x=SWEEP, y=tuple(values), log=True, **axes)
            for name, values in rates.items()
        ]


def _rate(pieces: Sequence[Passed], time_of: Callable[[Passed], int]) -> float:
    return sum(piece.frames for piece in pieces) / sum(time_of(piece) for piece in pieces) * 1e9


# --- latency ---


def _latencies(forwarder: int, clients: int, messages: int) -> tuple[list[Measurement], str | None]:
    """Return what measures latencies, and why nothing does, or what is left out, in a sentence."""
    kind = kvm_kind()
    if kind not in (KvmKind.UNIKERNEL, KvmKind.FULL):
        return (
            [],
            f"Latencies are left out: there is no KVM here that runs guests ({kind.value}); `hostd doctor` tells.",
        )
    from hostd.bench import network_latency as latency

    def way(name: str, tables: dict[str, Any]) -> Mapping[str, float]:
        found = latency.measure(tables, forwarder)
        return {name: found.through, f"{name}_bare": found.bare}

    cross = latency.cross_tables(messages, clients, forwarder)
    measurements = [Measurement("a frame from one port of a guest to its other one", lambda: way("cross", cross))]
    others = [cpu for cpu in sorted(os.sched_getaffinity(0)) if cpu not in (clients, forwarder)]
    if len(others) < 2:
        return measurements, (
            "Guest to guest was measured as one guest that spins on both its ports, from one to the other: two guests "
            "and the switch, all spinning, take three processors, and one more for everything else."
        )
    pair = latency.pair_tables(messages, clients, others[0])
    measurements.append(Measurement("a frame between two guests", lambda: way("pair", pair)))
    return measurements, None


# --- the report ---


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Measure all. Raises BenchError."""
    forwarder, clients = _choose(options.cpus)
    report = Report(bench="network", command="", machine={})
    try:
        with ExitStack() as stack:
            bench = Bench(forwarder, clients, stack)
            tell("starting what forwards")
            bench.set_up()
            rounds = take(lambda: bench.run(options.size, options.seconds), options.rounds, tell)
            report.series += bench.sweep(options.seconds, tell)
    except (NetError, KvmError) as error:
        raise BenchError(str(error)) from None
    latencies, why = _latencies(forwarder, clients, options.messages)
    found = rounds.figures()
    _rates(report, found, options.size)
    _times(report, interleave(latencies, options.rounds, tell, warm_up=False))
    report.notes += [*bench.notes, *([why] if why else []), *_bounds(bench, found), *_distances(rounds)]
    return report


def _rates(report: Report, found: Mapping[str, list[float]], size: int) -> None:
    way = f"frames of {size} bytes, one way, at most {QUEUE} on their way, each of them checked: {{}}"
    per_cpu: dict[str, Figure] = {}
    for name, text in WAYS.items():
        if name not in found:
            continue
        baseline = name in ("testpmd", "copy")
        report.add(name, found[name], "frames/s", way.format(text), better="higher", baseline=baseline)
        how = way.format(f"{text}; a second of the forwarder's processor time")
        per_cpu[name] = report.add(
            f"{name}_cpu", found[f"{name}_cpu"], "frames/s", how, better="higher", baseline=baseline
        )
    if "testpmd" in per_cpu:
        report.compare("vhost/testpmd", per_cpu["vhost"], per_cpu["testpmd"], at_least=0.7)
        report.compare("ring/testpmd", per_cpu["ring"], per_cpu["testpmd"])
    report.compare("ring/vhost", per_cpu["ring"], per_cpu["vhost"], at_least=2.0)
    report.compare("ring/copy", per_cpu["ring"], per_cpu["copy"])
    report.compare("time of a frame, capture/none", per_cpu["ring"], per_cpu["ring_capture"], at_most=1.2)


def _times(report: Report, found: Mapping[str, list[float]]) -> None:
    size = "64 bytes behind its header of 12, median; everybody spins"
    texts = {
        "cross": "from one ring port of a guest through the switch to its other one",
        "pair": "half a round trip from guest to guest and back through the switch",
    }
    for name, text in texts.items():
        if name not in found:
            continue
        latency = report.add(f"{name}_latency", found[name], "ns", f"{text}: a frame of {size}")
        bare = report.add(
            f"{name}_bare_latency",
            found[f"{name}_bare"],
            "ns",
            f"half a round trip of a bare channel to another guest, in turn with {name}_latency: {size}",
            baseline=True,
        )
        report.compare(f"{name}_latency/bare", latency, bare, at_most=3.0)


def _bounds(bench: Bench, found: Mapping[str, list[float]]) -> list[str]:
    notes = [
        f"What forwards has processor {bench.forwarder}; one thread on processor {bench.clients} sends all frames and "
        "takes them. It writes and reads every frame: four cache lines of each go from one processor to the other and "
        "back."
    ]
    idle = {name: statistics.median(found[f"{name}_idle"]) for name in WAYS if name in found}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in idle.items())
    notes.append(
        f"The clients waited for what forwards in {shares} of the time; where that is next to nothing, they bound the "
        "rate, and what forwards would do more."
    )
    pieces = [one for some in bench.passed.values() for one in some]
    loud = sum(not one.quiet for one in pieces)
    if loud:
        notes.append(
            f"In {loud} of {len(pieces)} pieces others used the two processors nearly all the time: what they show is "
            "noise, so run it again on a quieter machine."
        )
    return notes


def _distances(rounds: Rounds) -> list[str]:
    notes = []
    copied = statistics.median(one.figures["copy"] for one in rounds.kept)
    if rounds.others:
        others = [one.figures for one in rounds.others]
        pairs = [("vhost", "testpmd")] if "testpmd" in others[0] else []
        ratios = ", ".join(
            f"{of}/{to} {statistics.median(one[f'{of}_cpu'] / one[f'{to}_cpu'] for one in others):.2f}"
            for of, to in [*pairs, ("ring", "vhost"), ("ring", "copy")]
        )
        notes.append(
            f"{len(others)} more rounds are not counted, in which the two processors were at another distance: a loop "
            f"that copies did {statistics.median(one['copy'] for one in others) / copied:.2f} of what it did in those "
            f"that are, and the ratios were {ratios}."
        )
    if rounds.unsteady:
        notes.append(f"{rounds.unsteady} more rounds are not counted, in the course of which that distance changed.")
    return notes
