"""A Linux guest's way to the first line of its init, beside a QEMU microvm guest with the same kernel."""

from __future__ import annotations

import argparse

from hostd.bench.linux_guests import add_guest_options, boot_times
from hostd.bench.report import Report
from hostd.bench.rounds import Tell
from hostd.cluster.sizes import parse_size

EXAMPLES = ("hostd bench boot debian-cloud", "hostd bench boot debian --rounds 10 --json")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what is to be booted."""
    add_guest_options(parser)


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Boot both kinds of guest in turn. Raises BenchError and what `prepare` raises."""
    found = boot_times(options.kernel, options.initrd, parse_size(options.memory), options.rounds, tell)
    report = Report(bench="boot", command="", machine={})
    how = "from the {} to init's first line on the serial console; {}, the same vmlinux, initramfs and memory"
    ours = report.add("hostd", found.hostd, "s", how.format("request to a running supervisor", options.kernel))
    theirs = report.add(
        "qemu_microvm", found.qemu, "s", how.format("start of QEMU's process", options.kernel), baseline=True
    )
    report.compare("hostd/qemu_microvm", ours, theirs, at_most=1.0)
    return report
