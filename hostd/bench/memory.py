"""What a Linux guest costs, beside a QEMU microvm guest with the same kernel."""

from __future__ import annotations

import argparse

from hostd.bench.linux_guests import add_guest_options, memory_figures
from hostd.bench.report import Report
from hostd.bench.rounds import Tell
from hostd.cluster.sizes import parse_size

EXAMPLES = ("hostd bench memory debian-cloud --guests 4 --memory 128MiB --json",)
HOW = {
    "pss": "mean of Pss in /proc/PID/smaps_rollup of {} guests' processes",
    "available": "fall of MemAvailable from before the first to after the last of {}, caches dropped, per guest",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what is to be booted, and how often at once."""
    add_guest_options(parser)
    parser.add_argument("--guests", type=int, default=4, help="guests of each kind at once (default: 4)")


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Run `guests` of each kind, one kind after the other, each round. Raises BenchError and what `prepare` raises."""
    memory = parse_size(options.memory)
    found = memory_figures(options.kernel, options.initrd, memory, options.guests, options.rounds, tell)
    report = Report(bench="memory", command="", machine={})
    for measure_name, how in HOW.items():
        ours, theirs = (
            report.add(
                f"{kind}_{measure_name}",
                found[f"{kind}_{measure_name}"],
                "bytes",
                how.format(options.guests),
                baseline=kind != "hostd",
            )
            for kind in ("hostd", "qemu_microvm")
        )
        report.compare(f"{measure_name}: hostd/qemu_microvm", ours, theirs, at_most=0.6)
    return report
