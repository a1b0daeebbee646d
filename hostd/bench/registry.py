"""The benchmarks by name. Each is a module that says what it measures, what it can be told, and measures it."""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast

from hostd.bench.report import Report
from hostd.bench.rounds import Tell

MODULES = {
    "boot": "a Linux guest's way to the first line of its init, beside QEMU microvm",
    "control": "how long a request to a supervisor takes: a guest's start to its first message, its end, commands",
    "disks": "one file that several Linux guests read: pmem with DAX beside virtio-blk",
    "latency": "round trips between guests, beside host processes and libraries",
    "memory": "what a Linux guest costs, beside QEMU microvm",
    "network": "what the switch forwards, beside dpdk-testpmd, and a frame's latency",
    "network-linux": "TCP between two Linux guests, beside QEMU with taps on a Linux bridge",
    "pages": "random access to much memory with pages of 4 KiB, transparent huge pages and reserved ones",
    "templates": "guests that go on from a template, beside guests that boot",
    "throughput": "messages and bytes a second between guests, beside host processes and libraries",
}
"""hostd.bench.NAME (with _ for -), and what `hostd bench --help` says of it"""


class Benchmark(Protocol):
    """What each module has."""

    EXAMPLES: tuple[str, ...]

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the benchmark's own arguments; --rounds and what says where the report goes are there."""

    def measure(self, options: argparse.Namespace, tell: Tell) -> Report:
        """Measure and return the report, `command` and `machine` still empty. Raises BenchError."""


def load(name: str) -> Benchmark:
    """Return the benchmark `name`, one of MODULES."""
    return cast(Benchmark, importlib.import_module(f"hostd.bench.{name.replace('-', '_')}"))
