"""TCP between two Linux guests on a network of hostd's, beside the same two under QEMU on a Linux bridge."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial

from hostd.bench import BenchError, iperf
from hostd.bench.linux_pair import GUESTS, VHOST, Pair, Running
from hostd.bench.report import Report
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.cluster.sizes import parse_size
from hostd.supervisor.processes import cpu_seconds

EXAMPLES = ("hostd bench network-linux", "hostd lab -- hostd bench network-linux --rounds 3 --json")
TARGET = 2.0
SERVER_WAIT = 20.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what the guests boot, and how long they send."""
    parser.add_argument("--kernel", default="debian-cloud", help="an image's name or a path (default: debian-cloud)")
    parser.add_argument("--memory", default="192MiB", help="of each guest (default: 192MiB)")
    parser.add_argument(
        "--vhost",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the kernel serves QEMU's queues (vhost-net), or QEMU does (default: where /dev/vhost-net is)",
    )
    parser.add_argument("--seconds", type=_seconds, default=5, help="of TCP in each direction (default: 5)")


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Boot each pair anew in each round, alone, and let TCP run both ways. Raises BenchError and as `prepare` does."""
    pair = Pair(options.kernel, parse_size(options.memory), iperf.files())
    kinds: dict[str, Callable[[], AbstractAsyncContextManager[Running]]]
    baseline = "qemu_vhost" if options.vhost == "yes" or (options.vhost == "auto" and VHOST.exists()) else "qemu"
    kinds = {"hostd": pair.on_hostd, baseline: partial(pair.on_qemu, vhost=baseline == "qemu_vhost")}
    shares: dict[str, list[dict[str, float]]] = {}

    def measurement(kind: str) -> Measurement:
        def run() -> dict[str, float]:
            rate, share = asyncio.run(_transfer(kinds[kind](), options.seconds))
            shares.setdefault(kind, []).append(share)
            tell(f"{kind}: {rate / 1e6:,.0f} MB/s")
            return {kind: rate}

        return Measurement(kind, run)

    found = interleave([measurement(kind) for kind in kinds], options.rounds, tell, warm_up=False)
    return _report(found, shares, options)


def _report(
    found: Mapping[str, list[float]], shares: Mapping[str, list[dict[str, float]]], options: argparse.Namespace
) -> Report:
    report = Report(bench="network-linux", command="", machine={})
    how = (
        f"iperf3 TCP between two guests that run alone, {options.seconds} s each way, mean of both; "
        f"{options.kernel}, the same vmlinux, initramfs and memory; "
    )
    served = {
        "hostd": "virtio-net by vhost-user to hostd's switch",
        "qemu": "QEMU microvm with PCIe, virtio-net that QEMU serves, taps on a Linux bridge",
        "qemu_vhost": "QEMU microvm with PCIe, virtio-net that the kernel serves (vhost-net), taps on a Linux bridge",
    }
    figures = {
        kind: report.add(kind, rates, "bytes/s", how + served[kind], better="higher", baseline=kind != "hostd")
        for kind, rates in found.items()
    }
    for kind, figure in figures.items():
        if figure.baseline:
            report.compare(f"hostd/{kind}", figures["hostd"], figure, at_least=TARGET)
    if "qemu" in figures:
        report.notes.append(f"QEMU serves its guests' queues itself: {_why(options)}.")
    for kind, each in shares.items():
        parts = {name: statistics.median(share[name] for share in each) for name in each[0]}
        said = ", ".join(f"{name} {part:.0%}" for name, part in parts.items())
        most = max(parts, key=lambda name: parts[name])
        report.notes.append(
            f"{kind}: processor time while TCP ran, as parts of one processor: {said}; it is bound by the {most}."
        )
    return report


def _why(options: argparse.Namespace) -> str:
    return "as --vhost no says" if options.vhost == "no" else f"there is no {VHOST} here"


async def _transfer(pair: AbstractAsyncContextManager[Running], seconds: int) -> tuple[float, dict[str, float]]:
    """Return the bytes a second that were received, mean of both ways, and what each kind of process used meanwhile."""
    client, server = GUESTS
    async with pair as running:
        serving = asyncio.ensure_future(running.run(server, *iperf.SERVER))
        try:
            await _until_served(running, client, server, serving)
            before, start = _used(running), time.monotonic()
            rates = [
                iperf.received(await running.run(client, *iperf.client(server, seconds, reverse=reverse)))
                for reverse in (False, True)
            ]
            after, took = _used(running), time.monotonic() - start
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError, BenchError):
                await serving
    shares = {name: (after[name] - before[name]) / took for name in after}
    return statistics.mean(rates), shares


async def _until_served(running: Running, client: str, server: str, serving: asyncio.Future[bytes]) -> None:
    """Return once the server listens. Raises BenchError if it does not."""
    deadline = time.monotonic() + SERVER_WAIT
    while True:
        if serving.done():
            serving.result()
            raise BenchError(f"iperf3 in guest {server} ended at once")
        try:
            await running.run(client, *iperf.knock(server))
            return
        except BenchError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)


def _used(running: Running) -> dict[str, float]:
    return {name: sum(cpu_seconds(pid) for pid in pids) for name, pids in running.processes.items() if pids}


def _seconds(text: str) -> int:
    seconds = int(text)
    if not 1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{seconds} seconds; 1 to 3600 are possible")
    return seconds
