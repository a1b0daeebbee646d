"""Guests that go on from a template, beside guests that boot: until they run, until they are done, their memory."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hostd.bench import BenchError
from hostd.bench.report import Report
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.host import BackgroundCluster, Host, Result
from hostd.templates import remove

EXAMPLES = ("hostd bench templates", "hostd bench templates --guests 20 --json")
PROGRAM = Path(__file__).resolve().parent / "guests" / "warm.c"
READY_LIMIT = 60.0
TARGET = 1.5
"""seconds in which 100 clones are to run"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add how many guests."""
    parser.add_argument("--guests", type=int, default=100, help="clones, and guests that boot (default: 100)")


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Run as many clones as booted guests, by turns. Raises BenchError, and what bringing up a cluster raises."""
    if not 1 <= options.guests <= 10000:
        raise BenchError(f"--guests {options.guests}: from 1 to 10000 are possible")
    report = Report(bench="templates", command="", machine={})
    name = f"bench-{os.getpid()}"
    text = _cluster_file(name, options.guests)
    report.cluster_files = {"templates.toml": text}
    with tempfile.TemporaryDirectory(prefix="hostd-templates-") as folder, Host() as host:
        file = Path(folder, "templates.toml")
        file.write_text(text)
        with _template(host, file, name):
            runs = {
                "clones": lambda: host.run_from(f"{name}-t", options.guests),
                "boots": lambda: host.run(file, overrides=['guest.warm.args=["go"]']),
            }
            measurements = [Measurement(kind, _timed(kind, run)) for kind, run in runs.items()]
            found = interleave(measurements, options.rounds, tell)
    _add(report, options.guests, found)
    return report


def _add(report: Report, guests: int, found: dict[str, list[float]]) -> None:
    many = f"{guests} guests, "
    for figure, unit, how in (
        ("started", "s", many + "from the request to the last one's run"),
        ("done", "s", many + "until each has added up its table and ended; clones have the table from their template"),
        ("memory", "bytes", "a guest's, process and kernel side, as hostd run has it"),
    ):
        names = [f"{kind}_{figure}" for kind in ("clones", "boots")]
        if not all(name in found for name in names):
            continue
        ours, theirs = (report.add(name, found[name], unit, how, baseline=name.startswith("boots")) for name in names)
        report.compare(f"{figure}: clones/boots", ours, theirs)
    if guests == 100:
        target = report.add("target", [TARGET] * len(found["clones_started"]), "s", "what was asked for", baseline=True)
        report.compare("started/target", report.figure("clones_started"), target, at_most=1.0)


def _cluster_file(name: str, guests: int) -> str:
    return f"""[cluster]
name = "{name}"
[guest.warm]
program = "{PROGRAM}"
args = ["wait"]
count = {guests}
memory = "4MiB"
"""


@contextmanager
def _template(host: Host, file: Path, name: str) -> Iterator[None]:
    """Make the template NAME-t of a guest that is ready, and remove it at the end."""
    cluster = host.up(file, overrides=["guest.warm.count=1"])
    try:
        _wait(cluster)
        next(iter(cluster.guests.values())).template(f"{name}-t")
    finally:
        cluster.down()
    try:
        yield
    finally:
        remove(f"{name}-t")


def _wait(cluster: BackgroundCluster) -> None:
    deadline = time.monotonic() + READY_LIMIT
    guest = next(iter(cluster.guests.values()))
    while "ready" not in guest.reports:
        if time.monotonic() > deadline:
            raise BenchError("the guest that was to be a template didn't get ready")
        time.sleep(0.02)


def _timed(kind: str, run: Callable[[], Result]) -> Callable[[], dict[str, float]]:
    def measured() -> dict[str, float]:
        result = run()
        if not result.ok:
            raise BenchError(f"not all {kind} came to their end: exit code {result.json['exit_code']}")
        figures = {f"{kind}_started": result.json["start"]["seconds"], f"{kind}_done": result.json["seconds"]}
        memory = result.memory["per_guest_bytes"]
        return figures if memory is None else figures | {f"{kind}_memory": float(memory)}

    return measured
