"""Round trips between guests: spinning and sleeping, pairs, request and reply, broadcast; beside what the host has.

Everything is measured in turn, in short pieces, so that figures that are compared were taken within the same fraction
of a second: on a shared machine the way between two processors is not the same one from second to second.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from hostd.bench import BenchError
from hostd.bench.latency_baselines import KINDS, Pairs, missing
from hostd.bench.latency_guests import (
    BROADCAST,
    EXIT,
    LONGEST,
    LONGEST_SHARED,
    MOST_GUESTS,
    PAIR,
    SPIN_ALWAYS,
    STAR,
    Guests,
    Way,
)
from hostd.bench.report import Figure, Report, Series
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.bench.samples import PERCENTILES, Samples
from hostd.bench.standing import as_toml
from hostd.cluster.sizes import parse_size

EXAMPLES = (
    "hostd bench latency",
    "hostd bench latency --wait spin --sizes 8,64,4KiB --rounds 10 --json",
    "hostd bench latency --wait sleep --clients 8",
    "hostd bench latency --rate 100000",
)
SIZE = 64
"""bytes of a message whose round trip is compared"""
ONE_LINE = 56
"""bytes of a message that, with its header, is one cache line"""
SIZES = (8, 64, 512, 4 << 10, 32 << 10, 256 << 10, 1 << 20)
PIECES = 10
"""each measurement's messages in a round come in so many pieces, in turn with the others'"""
MESSAGES = 20_000
SLEEPING, PYTHON = 20, 10
"""how many times fewer messages are measured of those who sleep, and of Python"""
BYTES_BY_SIZE = 16 << 20
"""of messages of one size in a piece, at most"""
PIECE_SECONDS = 0.05
"""of a piece whose questions go out by the clock, about"""
SPIN_ROWS = ("cache_line", "host_ring")
SLEEP_ROWS = ("eventfd", "host_ring_sleep", "pipe", "unix_socket", "tcp_loopback")
PYTHON_ROWS = ("python_channel", "python_channel_sleep", "multiprocessing_pipe", "zeromq_ipc", "iceoryx2")
OWN = ("guests", "star", "broadcast", "python_channel")
"""what figures of hostd's own begin with, whose percentiles are all told"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what may be chosen."""
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help="bytes of messages, as 8,4KiB (default: 8 to 1MiB)")
    parser.add_argument("--wait", choices=("spin", "sleep", "both"), default="both", help="how guests wait")
    parser.add_argument(
        "--clients", type=_clients, default=4, help="guests that ask one guest, or hear its broadcast (default: 4)"
    )
    parser.add_argument(
        "--messages",
        type=_messages,
        default=MESSAGES,
        help=f"round trips of a spinning pair in a round; of others fewer (default: {MESSAGES})",
    )
    parser.add_argument(
        "--rate",
        type=_rate,
        help="messages a second that go out by the clock, answered or not; times count from when each was due",
    )
    parser.add_argument("--cpus", type=_cpus, help="processors: the first one's asks, as 0,1 (default: all there are)")


def _sizes(text: str) -> tuple[int, ...]:
    sizes = []
    for part in text.split(","):
        try:
            size = parse_size(part.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part!r} is no size: {error}") from None
        if not 8 <= size <= LONGEST:
            raise argparse.ArgumentTypeError(f"{part} is not possible; messages have 8 bytes to 1MiB")
        sizes.append(size)
    return tuple(sorted(set(sizes)))


def _number(text: str, low: int, high: int, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{number} {what}; {low} to {high} are possible")
    return number


def _clients(text: str) -> int:
    return _number(text, 1, MOST_GUESTS - 1, "clients")


def _messages(text: str) -> int:
    return _number(text, 200, 10_000_000, "messages")


def _rate(text: str) -> int:
    return _number(text, 1, 100_000_000, "messages a second")


def _cpus(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; numbers are wanted, as 0,1") from None


def _choose(wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the processors to use. Raises BenchError."""
    there = sorted(os.sched_getaffinity(0))
    cpus = wanted or tuple(there)
    text = ",".join(map(str, cpus))
    for cpu in cpus:
        if cpu not in there:
            raise BenchError(f"--cpus {text}: there is no processor {cpu} here, only {there}")
    if len(set(cpus)) < 2 or len(set(cpus)) < len(cpus):
        raise BenchError(f"processors {text}: two different ones are needed at least, one for each of two who spin")
    return cpus


# --- what is measured ---


@dataclass(frozen=True)
class Row:
    """Something that bounces messages: `bounce(size, count)` gives its round trips."""

    name: str
    how: str
    messages: int
    """in a round"""
    bounce: Callable[[int, int], Samples]
    baseline: bool = False
    longest: int = LONGEST
    any_size: bool = True


@dataclass
class Bench:
    """What bounces messages, set up and idle."""

    options: argparse.Namespace
    guests: Guests
    pairs: Pairs
    cpus: Sequence[int]
    notes: list[str] = field(default_factory=list)
    all: dict[str, Samples] = field(default_factory=dict)
    """the round trips of all rounds, by row"""
    rounds: dict[str, list[Samples]] = field(default_factory=dict)
    """those of each measured round"""

    def spinning(self) -> list[Row]:
        """Return what spins."""
        count = self.options.messages
        askers = min(self.options.clients, len(self.cpus) - 1)
        return [
            *(self._host(name, count) for name in SPIN_ROWS),
            self._pair("guests_spin", SPIN_ALWAYS, count),
            self._one_line(count),
            self._many("star_spin", STAR, SPIN_ALWAYS, askers, count),
            self._many("broadcast_spin", BROADCAST, SPIN_ALWAYS, askers, count),
        ]

    def sleeping(self) -> list[Row]:
        """Return what sleeps."""
        count = self.options.messages // SLEEPING
        clients = self.options.clients
        return [
            *(self._host(name, count) for name in SLEEP_ROWS),
            self._pair("guests_sleep", 0, count),
            self._exit(count),
            self._many("star_sleep", STAR, 0, clients, count // clients),
            self._many("broadcast_sleep", BROADCAST, 0, clients, count // clients),
        ]

    def python(self) -> list[Row]:
        """Return what is Python."""
        rows = []
        for name in PYTHON_ROWS:
            why = missing(KINDS[name])
            if why is None:
                rows.append(self._host(name, self.options.messages // PYTHON))
            elif why not in self.notes:
                self.notes.append(why)
        return rows

    def by_clock(self, interval_ns: int) -> list[Row]:
        """Return what can be asked by the clock."""
        count = min(self.options.messages, round(PIECES * PIECE_SECONDS * 1e9 / interval_ns))
        rows = [self._host(name, count, interval_ns) for name in ("host_ring", "unix_socket")]
        if self.options.wait != "sleep":
            rows.append(self._pair("guests_spin", SPIN_ALWAYS, count, interval_ns))
        if self.options.wait != "spin":
            rows.append(self._pair("guests_sleep", 0, count, interval_ns))
        return rows

    def _host(self, name: str, messages: int, interval_ns: int = 0) -> Row:
        kind = KINDS[name]

        def bounce(size: int, count: int) -> Samples:
            return self.pairs.get(name).bounce(size, count, warm_up=_warm_up(count), interval_ns=interval_ns)

        return Row(
            name,
            kind.how,
            messages,
            bounce,
            baseline=not name.startswith("python_channel"),
            longest=kind.longest,
            any_size=kind.any_size,
        )

    def _pair(self, name: str, spin_ns: int, messages: int, interval_ns: int = 0) -> Row:
        def bounce(size: int, count: int) -> Samples:
            return self.guests.bounce(
                PAIR, size, count, spin_ns=spin_ns, warm_up=_warm_up(count), interval_ns=interval_ns
            )

        return Row(name, f"{PAIR.how}, {_waiting(spin_ns)}", messages, bounce)

    def _one_line(self, messages: int) -> Row:
        def bounce(_: int, count: int) -> Samples:
            return self.guests.bounce(PAIR, ONE_LINE, count, spin_ns=SPIN_ALWAYS, warm_up=_warm_up(count))

        how = f"{ONE_LINE} bytes, which are one cache line with their header, {PAIR.how}, {_waiting(SPIN_ALWAYS)}"
        return Row("guests_spin_one_line", how, messages, bounce, any_size=False)

    def _exit(self, messages: int) -> Row:
        def bounce(_: int, count: int) -> Samples:
            return self.guests.bounce(EXIT, SIZE, count, spin_ns=0, warm_up=_warm_up(count))

        return Row("guest_exit", EXIT.how, messages, bounce, any_size=False)

    def _many(self, name: str, way: Way, spin_ns: int, askers: int, messages: int) -> Row:
        def bounce(size: int, count: int) -> Samples:
            return self.guests.bounce(way, size, count, spin_ns=spin_ns, users=askers + 1, warm_up=_warm_up(count))

        people = "another guest" if askers == 1 else f"{askers} other guests"
        how = f"{way.how.format(askers=people)}, {_waiting(spin_ns)}"
        return Row(name, how, max(PIECES, messages), bounce, longest=LONGEST_SHARED)

    # --- measuring ---

    def group(self, name: str, rows: Sequence[Row], label: str = "") -> Measurement:
        """Return the measurement of all `rows`, in pieces, in turn: the middle of each one's round trips."""

        def run() -> Mapping[str, float]:
            found = {row.name: Samples() for row in rows}
            for number in range(PIECES):
                for row in rows[:: -1 if number % 2 else 1]:
                    found[row.name].add(row.bounce(SIZE, max(2, row.messages // PIECES)))
            for row in rows:
                self.all.setdefault(row.name + label, Samples()).add(found[row.name])
                self.rounds.setdefault(row.name + label, []).append(found[row.name])
            return {row.name + label: found[row.name].middle() for row in rows}

        return Measurement(name, run)

    def sizes(self, rows: Sequence[Row]) -> Measurement:
        """Return the measurement of all `rows` that can have messages of any size, by size: NAME_SIZE."""

        def run() -> Mapping[str, float]:
            found = {}
            for size in self.options.sizes:
                for row in rows:
                    if row.any_size and size <= row.longest:
                        count = min(row.messages // PIECES, BYTES_BY_SIZE // size)
                        found[f"{row.name}_{size}"] = row.bounce(size, max(10, count)).middle()
            return found

        return Measurement("messages by size", run)


def _warm_up(count: int) -> int:
    return max(5, count // 10)


def _waiting(spin_ns: int) -> str:
    return "all sleep at once on their doorbells" if not spin_ns else "all spin"


# --- the report ---


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Measure all. Raises BenchError."""
    from shm._shm import lib

    cpus = _choose(options.cpus)
    report = Report(bench="latency", command="", machine={})
    ticks_per_ns = lib.loop_ticks_per_ns()
    with ExitStack() as stack:
        tell(f"starting {options.clients + 1} guests")
        pairs = stack.enter_context(Pairs(cpus, ticks_per_ns))
        guests = stack.enter_context(Guests(options.clients + 1, cpus, ticks_per_ns))
        report.cluster_files["latency.toml"] = as_toml(guests.tables)
        bench = Bench(options, guests, pairs, cpus)
        groups = {"python": bench.python()}
        if options.wait != "spin":
            groups = {"sleeping": bench.sleeping()} | groups
        if options.wait != "sleep":
            groups = {"spinning": bench.spinning()} | groups
        rows = [row for group in groups.values() for row in group]
        measurements = [bench.group(name, group) for name, group in groups.items()]
        if options.rate:
            by_clock = bench.by_clock(round(1e9 / options.rate))
            measurements.append(bench.group("questions by the clock", by_clock, "_by_clock"))
        measurements.append(bench.sizes([row for row in rows if not row.name.startswith(("star", "broadcast"))]))
        found = interleave(measurements, options.rounds, tell)
    for row in rows:
        _figures(report, bench, row, found, options.rounds)
    if options.rate:
        for row in by_clock:
            _figures_by_clock(report, bench, row, options)
    _ratios(report)
    _by_size(report, rows, found, options.sizes)
    report.notes += [*bench.notes, *_notes(options, cpus), *_bounds(report)]
    return report


def _figures(report: Report, bench: Bench, row: Row, found: Mapping[str, list[float]], rounds: int) -> None:
    """Add a row's figures: the middle of its round trips, percentiles as measured, percentiles corrected."""
    text = f"round trip of {SIZE} bytes" if row.any_size else "round trip"
    how = f"{text}, {row.how}; {{}}, of {row.messages} in a round"
    middle = "the mean of the middle half, as a median would go by the clock's steps"
    report.add(row.name, found[row.name], "ns", how.format(middle), baseline=row.baseline)
    measured = [samples.histogram() for samples in bench.rounds[row.name][-rounds:]]
    corrected = [samples.histogram(samples.middle()) for samples in bench.rounds[row.name][-rounds:]]
    wanted = PERCENTILES if row.name.startswith(OWN) else {name: PERCENTILES[name] for name in ("p99",)}
    for name, percentile in wanted.items():
        values = [float(histogram.get_value_at_percentile(percentile)) for histogram in measured]
        report.add(f"{row.name}_{name}", values, "ns", how.format(f"{name} as measured"), baseline=row.baseline)
    if row.name.startswith(OWN):
        values = [float(histogram.get_max_value()) for histogram in measured]
        report.add(f"{row.name}_max", values, "ns", how.format("the longest"))
        for name, percentile in PERCENTILES.items():
            values = [float(histogram.get_value_at_percentile(percentile)) for histogram in corrected]
            what = f"{name}, corrected for coordinated omission with the middle as the expected interval"
            report.add(f"{row.name}_corrected_{name}", values, "ns", how.format(what))
    samples = bench.all[row.name]
    _curve(report, samples, row.name, samples.histogram())
    if row.name.startswith(OWN):
        _curve(report, samples, f"{row.name}, corrected", samples.histogram(samples.middle()))


def _figures_by_clock(report: Report, bench: Bench, row: Row, options: argparse.Namespace) -> None:
    label = f"{row.name}_by_clock"
    how = (
        f"round trip of {SIZE} bytes, {row.how}; {options.rate} messages a second by the clock, each one's time from "
        f"when it was due; {{}}, of {row.messages} in a round"
    )
    measured = [samples.histogram() for samples in bench.rounds[label][-options.rounds :]]
    for name, percentile in PERCENTILES.items():
        values = [float(histogram.get_value_at_percentile(percentile)) for histogram in measured]
        report.add(f"{label}_{name}", values, "ns", how.format(name), baseline=row.baseline)
    values = [float(histogram.get_max_value()) for histogram in measured]
    report.add(f"{label}_max", values, "ns", how.format("the longest"), baseline=row.baseline)
    _curve(report, bench.all[label], f"{row.name}, by the clock", bench.all[label].histogram())


def _curve(report: Report, samples: Samples, line: str, histogram: object) -> None:
    x, y = samples.curve(histogram)
    chart, labels = "round trips, percentiles", {"x_label": "of so many round trips one is slower", "y_label": "ns"}
    report.series.append(Series(chart=chart, line=line, x=x, y=y, log=True, **labels))


def _ratios(report: Report) -> None:
    there: dict[str, Figure] = {figure.name: figure for figure in report.figures}

    def compare(of: str, to: str, *, at_most: float | None = None, at_least: float | None = None) -> None:
        if of in there and to in there:
            report.compare(f"{of}/{to}", there[of], there[to], at_most=at_most, at_least=at_least)

    compare("guests_spin", "cache_line", at_most=1.25)
    compare("guests_spin_one_line", "cache_line")
    compare("guests_spin", "host_ring")
    compare("host_ring", "cache_line")
    compare("guests_sleep", "eventfd", at_most=1.5)
    compare("host_ring_sleep", "eventfd")
    compare("zeromq_ipc", "python_channel", at_least=2.0)
    compare("iceoryx2", "python_channel", at_least=2.0)
    compare("zeromq_ipc", "python_channel_sleep")


def _by_size(report: Report, rows: Sequence[Row], found: Mapping[str, list[float]], sizes: Sequence[int]) -> None:
    """Add the lines of round trips by size; of guests also the figures."""
    for row in rows:
        there = [size for size in sizes if f"{row.name}_{size}" in found]
        for size in there if row.name.startswith("guests") else ():
            how = f"round trip of {size} bytes, {row.how}; the mean of the middle half"
            report.add(f"{row.name}_{size}_bytes", found[f"{row.name}_{size}"], "ns", how)
        if there:
            report.series.append(
                Series(
                    chart="round trips by size",
                    line=row.name,
                    x_label="bytes of a message",
                    y_label="ns",
                    x=tuple(map(float, there)),
                    y=tuple(
                        sorted(found[f"{row.name}_{size}"])[len(found[f"{row.name}_{size}"]) // 2] for size in there
                    ),
                    log=True,
                )
            )


def _notes(options: argparse.Namespace, cpus: Sequence[int]) -> list[str]:
    notes = []
    if options.wait != "sleep" and options.clients >= len(cpus):
        notes.append(
            f"Who spins needs a processor, so star_spin and broadcast_spin have {len(cpus) - 1} of {options.clients} "
            "clients; those of star_sleep and broadcast_sleep share processors."
        )
    return notes


def _bounds(report: Report) -> list[str]:
    """Return what bounds the figures that have targets, a sentence or two each."""
    there = {figure.name: figure.median for figure in report.figures}
    notes = []
    if "guests_spin" in there:
        beside = (there["guests_spin"] - there["cache_line"]) / 2
        notes.append(
            f"A message costs {beside:.0f} ns beside a line's way: it is copied in and out and checked, a second line "
            "comes with it, the next header is blanked, head and tail are stored. That stays the same where processors "
            "are further apart, so the ratio to cache_line falls then. Being guests adds nothing: guests_spin is "
            f"{there['guests_spin'] / there['host_ring']:.2f} of the same ring between host processes."
        )
    if "guests_sleep" in there:
        parts = there["eventfd"] + there["guest_exit"]
        notes.append(
            "Each of the two who sleep has to leave his guest and enter it again, a way that takes guest_exit, about "
            "half of which (the entry) lies on the message's way: so two of them add one guest_exit to eventfd's round "
            f"trip. eventfd + guest_exit is {parts:,.0f} ns, guests_sleep {there['guests_sleep'] / parts:.2f} of that."
        )
    return notes
