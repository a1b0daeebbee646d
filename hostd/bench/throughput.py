"""How many messages a second, and bytes, get from guest to guest, beside host processes and libraries."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hostd.bench import BenchError
from hostd.bench.report import Figure, Report, Series
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.bench.stream_baselines import KINDS, Pairs
from hostd.bench.stream_guests import (
    BROADCAST,
    IN_PLACE,
    LONGEST,
    MANY,
    MOST_GUESTS,
    SLEEPING,
    SPSC,
    TOPOLOGIES,
    Guests,
    Traffic,
    as_toml,
)
from hostd.cluster.sizes import parse_size

EXAMPLES = (
    "hostd bench throughput",
    "hostd bench throughput --sizes 8,64,4KiB,1MiB --rounds 9 --json",
    "hostd bench throughput --topology ring,all-to-all --guests 8 --sizes 64",
)
SIZES = "8,64,512,4KiB,64KiB,1MiB"
BYTES_FROM = 64 << 10
"""figures of messages of so many bytes and more are bytes a second"""
SMALL_MESSAGE = 64
TOPOLOGY_SIZE = 64
SLICES = 5
"""a round's value is the median of so many measurements, so that one that met something else counts little"""
LEAST = 16
"""messages of one measurement"""
MILLION = Figure(name="1e6 messages/s", how="", rounds=(1e6,), unit="messages/s", better="higher")

Rate = Callable[[int, int], float]
"""messages a second, of a size in bytes and a count of messages"""


@dataclass
class Way:
    """A way for messages, and for each size how many take the time that a measurement should."""

    name: str
    how: str
    rate: Rate
    baseline: bool
    counts: dict[int, int] = field(default_factory=dict)

    def measure(self, size: int, seconds: float) -> float:
        """Return messages of `size` bytes a second. The first time finds out how many take `seconds`."""
        if size not in self.counts:
            self.counts[size] = self._enough(size, seconds / SLICES)
        rate = statistics.median(self.rate(size, self.counts[size]) for _ in range(SLICES))
        if not rate:
            raise BenchError(
                f"{self.name}: {self.counts[size]} messages of {size} bytes took no time; is there a clock?"
            )
        return rate

    def _enough(self, size: int, seconds: float) -> int:
        count = LEAST
        while True:
            rate = self.rate(size, count)
            if rate and count >= rate * seconds / 2:
                return max(LEAST, int(rate * seconds))
            # A small count says little of the rate: a step goes not too far.
            count = min(count * 8, max(count * 2, int(rate * seconds)))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add sizes, topologies, and how long a measurement takes."""
    parser.add_argument("--sizes", type=_sizes, default=_sizes(SIZES), help=f"of messages (default: {SIZES})")
    parser.add_argument(
        "--topology",
        type=_topologies,
        default=list(TOPOLOGIES),
        metavar="NAMES",
        help=f"of {', '.join(TOPOLOGIES)}; or none (default: all)",
    )
    parser.add_argument(
        "--guests", type=_guests, default=4, help="in topologies, many-to-one and broadcast (default: 4)"
    )
    parser.add_argument("--seconds", type=_seconds, default=0.1, help="that one measurement takes (default: 0.1)")


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Measure all ways in turn. Raises BenchError and what `prepare` raises."""
    cpus = sorted(os.sched_getaffinity(0))
    report = Report(bench="throughput", command="", machine={})
    with _terminated(), Pairs(cpus) as pairs, Guests(options.guests, cpus) as guests:
        report.cluster_files = {"throughput": as_toml(guests.tables)}
        ways, topologies = _ways(guests, pairs, report.notes), _topology_ways(guests, options.topology)
        found = interleave(_measurements(ways, topologies, options.sizes, options.seconds), options.rounds, tell)
    figures = _figures(report, [*ways, *topologies], found, len(cpus), options)
    _ratios(report, figures, options.sizes)
    _series(report, ways, figures, options.sizes)
    _notes(report, cpus, options.guests)
    return report


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM end the block as an interruption does, so that what was begun is cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- what is measured -----------------------------------------------------------------------------------------------


def _ways(guests: Guests, pairs: Pairs, notes: list[str]) -> list[Way]:
    ways = [_guest_way(guests, traffic) for traffic in (SPSC, IN_PLACE, SLEEPING, MANY, BROADCAST)]
    for kind in KINDS.values():
        missing = pairs.missing(kind)
        if missing:
            notes.append(missing)
            continue
        ways.append(
            Way(
                kind.name,
                kind.how,
                lambda size, count, name=kind.name: pairs.get(name).rate(size, count),  # type: ignore[misc]
                baseline=not kind.name.startswith("python_"),
            )
        )
    # The two that are held against each other go one right after the other.
    order = ["guests_spsc", "host_ring"]
    return sorted(ways, key=lambda way: order.index(way.name) if way.name in order else len(order))


def _topology_ways(guests: Guests, names: Sequence[str]) -> list[Way]:
    return [_guest_way(guests, TOPOLOGIES[name], f"{guests.count}_guests_") for name in names]


def _guest_way(guests: Guests, traffic: Traffic, prefix: str = "") -> Way:
    return Way(
        f"{prefix}{traffic.name}",
        traffic.how,
        lambda size, count: guests.rate(traffic, size, count),
        baseline=False,
    )


def _measurements(
    ways: Sequence[Way], topologies: Sequence[Way], sizes: Sequence[int], seconds: float
) -> list[Measurement]:
    """Return the measurements, each of what is held against each other: all ways of one size, in place all sizes."""

    def all_of(pairs: Sequence[tuple[Way, int]]) -> Callable[[], Mapping[str, float]]:
        return lambda: {_name(way.name, size): way.measure(size, seconds) for way, size in pairs}

    copying = [way for way in ways if "in_place" not in way.name]
    in_place = [way for way in ways if "in_place" in way.name]
    found = [Measurement(f"messages of {_text(size)}", all_of([(way, size) for way in copying])) for size in sizes]
    found.append(Measurement("messages in place", all_of([(way, size) for way in in_place for size in sizes])))
    if topologies:
        found.append(Measurement("topologies", all_of([(way, TOPOLOGY_SIZE) for way in topologies])))
    return found


# --- what is reported -----------------------------------------------------------------------------------------------


def _figures(
    report: Report, ways: Sequence[Way], found: Mapping[str, Sequence[float]], cpus: int, options: argparse.Namespace
) -> dict[str, Figure]:
    """Add the figures; return, by name, all of them in messages a second."""
    rates = {}
    for size in sorted({*options.sizes, TOPOLOGY_SIZE}):
        for way in ways:
            name = _name(way.name, size)
            if name not in found:
                continue
            how = f"{way.how}; messages of {_text(size)}, {SLICES} times {way.counts[size]} in each round"
            rates[name] = Figure(
                name=name, how=how, rounds=tuple(found[name]), unit="messages/s", better="higher", baseline=way.baseline
            )
            if "in_place" in way.name:
                cost = [1e9 / rate for rate in found[name]]
                what = f"{how}; 8 bytes of each are written and read"
                rates[f"{name}_ns"] = report.add(f"{name}_ns", cost, "ns", what, baseline=way.baseline)
            elif size >= BYTES_FROM:
                report.add(
                    name, [rate * size for rate in found[name]], "bytes/s", how, better="higher", baseline=way.baseline
                )
            else:
                report.figures.append(rates[name])
    return rates


def _ratios(report: Report, figures: Mapping[str, Figure], sizes: Sequence[int]) -> None:
    """Add the ratios whose figures were measured."""

    def compare(one: str, size: int, other: str, other_size: int, **target: float) -> None:
        names = _name(one, size), _name(other, other_size)
        if names[0] in figures and names[1] in figures:
            report.compare("/".join(names), figures[names[0]], figures[names[1]], **target)

    small = SMALL_MESSAGE
    compare("guests_spsc", small, "host_ring", small, at_least=0.95)
    for kind in KINDS.values():
        if kind.library:
            compare("guests_spsc", small, kind.name, small, at_least=1)
    if _name("python_batches", small) in figures:
        batches = figures[_name("python_batches", small)]
        million = MILLION.model_copy(update={"rounds": (1e6,) * len(batches.rounds)})
        report.compare(f"{batches.name}/1e6", batches, million, at_least=1)
    for library in ("multiprocessing_pipe", "zeromq_ipc", "iceoryx2"):
        compare("python_batches", small, library, small, at_least=1)
        compare("python_channel", small, library, small, at_least=1)
    cost = [f"{_name(way, size)}_ns" for way in ("guests_in_place",) for size in (LONGEST, small)]
    if all(name in figures for name in cost):
        report.compare("/".join(cost), figures[cost[0]], figures[cost[1]], at_most=2)
    for size in sizes:
        if size >= BYTES_FROM:
            compare("guests_spsc", size, "host_ring", size)
            compare("guests_spsc", size, "memcpy", size)


def _series(report: Report, ways: Sequence[Way], figures: Mapping[str, Figure], sizes: Sequence[int]) -> None:
    """Add messages a second, and bytes a second, against size: a line for each way."""
    x = tuple(map(float, sizes))
    for way in ways:
        rates = tuple(figures[_name(way.name, size)].median for size in sizes)
        lines = [("message rate by size", "messages/s", rates)]
        if "in_place" not in way.name:
            volumes = tuple(rate * size for rate, size in zip(rates, sizes, strict=True))
            lines.append(("bytes by size", "bytes/s", volumes))
        for chart, unit, y in lines:
            report.series.append(
                Series(chart=chart, line=way.name, x_label="message size, bytes", y_label=unit, x=x, y=y, log=True)
            )


def _notes(report: Report, cpus: Sequence[int], guests: int) -> None:
    report.notes.append(
        f"Senders run on CPU {cpus[0]}, receivers on CPU {cpus[-1]}; every message carries its number and is checked, "
        "none was lost, doubled or changed in its order."
    )
    if guests > len(cpus):
        report.notes.append(
            f"{guests} guests share {len(cpus)} processors: many-to-one, broadcast and the topologies are bound by "
            "their turns on them, and by sleeping and waking, not by the rings."
        )


def _name(way: str, size: int) -> str:
    return f"{way}_{_text(size).replace(' ', '')}"


def _text(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


# --- what can be asked for ------------------------------------------------------------------------------------------


def _sizes(text: str) -> list[int]:
    try:
        sizes = [parse_size(int(part) if part.isdecimal() else part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    wrong = [size for size in sizes if not 8 <= size <= LONGEST]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]} bytes; messages have 8 bytes to 1MiB")
    return sorted(set(sizes))


def _topologies(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in TOPOLOGIES:
            raise argparse.ArgumentTypeError(f"{name!r} is no topology; there are {', '.join(TOPOLOGIES)}")
    return names


def _guests(text: str) -> int:
    count = int(text)
    if not 2 <= count <= MOST_GUESTS:
        raise argparse.ArgumentTypeError(f"{count} guests; 2 to {MOST_GUESTS} are possible")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.001 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{seconds:g} s; 0.001 to 60 are possible")
    return seconds
