"""Random access to much memory with pages of 4 KiB, transparent huge pages, and reserved ones (hugetlb)."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guestlib import build
from hostd.bench import BenchError
from hostd.bench.report import Report
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.cluster.sizes import parse_size
from hostd.host import Host

EXAMPLES = ("hostd bench pages", "hostd bench pages --size 256MiB --json")
WALK = Path(__file__).resolve().parent / "walk"
RESERVED = Path("/proc/sys/vm/nr_hugepages")
HUGE, SPARE = 2 << 20, 16 << 20
LIMIT = 300.0
"""seconds after which a guest that reports nothing is given up"""


@dataclass(frozen=True)
class Pages:
    """One size of pages: what walk_host calls it, and a guest's options."""

    name: str
    options: str
    how: str


KINDS = (
    Pages("4k", "thp = false", "4 KiB"),
    Pages("thp", "thp = true", "transparent huge pages (MADV_HUGEPAGE)"),
    Pages("hugetlb", "hugetlb = true", "2 MiB, reserved"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add how much memory and how many accesses."""
    parser.add_argument("--size", default="1GiB", help="of the memory that is read (default: 1GiB)")
    parser.add_argument("--accesses", type=int, default=4_000_000, help="in each measurement (default: 4000000)")


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Walk in guests and in host processes, by turns. Raises BenchError, and what bringing up a cluster raises."""
    size = _whole(options.size)
    if not 1000 <= options.accesses <= 10**10:
        raise BenchError(f"--accesses {options.accesses}: from 1000 to 10000000000 are possible")
    report = Report(bench="pages", command="", machine={})
    with tempfile.TemporaryDirectory(prefix="hostd-pages-") as name, _reserved(size + SPARE) as lack:
        folder = Path(name)
        kinds = KINDS if lack is None else KINDS[:2]
        report.notes += [lack] if lack is not None else []
        host, texts = _compile(folder), {}
        measurements = []
        for kind in kinds:
            texts[kind.name] = _cluster_file(kind, size, options.accesses)
            measurements.append(Measurement(f"guest_{kind.name}", _guest(folder, kind, texts[kind.name])))
            measurements.append(Measurement(f"host_{kind.name}", _host(host, kind, size, options.accesses)))
        found = interleave(measurements, options.rounds, tell, warm_up=False)
        report.cluster_files = {f"pages-{name}.toml": text for name, text in texts.items()}
    _add(report, kinds, found, size)
    return report


def _add(report: Report, kinds: tuple[Pages, ...], found: dict[str, list[float]], size: int) -> None:
    how = f"a random access to {size >> 20} MiB, each waiting for the one before; "
    figures, ends = {}, {end for name, all_rounds in found.items() if "_end_" in name for end in all_rounds}
    if len(ends) != 1:
        raise BenchError(f"the accesses were not the same everywhere, they ended at {len(ends)} places")
    for kind in kinds:
        for who in ("guest", "host"):
            what = how + kind.how + ("; a host process" if who == "host" else "")
            name = f"{who}_{kind.name}"
            figures[name] = report.add(name, found[name], "ns", what, baseline=who == "host")
        lay, mapped = (min(1.0, min(found[f"{what}_{kind.name}"]) / size) for what in ("huge", "mapped"))
        report.notes.append(
            f"guest_{kind.name}: {lay:.0%} of the memory lay in the host's huge pages, KVM had mapped {mapped:.0%} so."
        )
    for kind in kinds[1:]:
        for who in ("guest", "host"):
            report.compare(f"{who}: {kind.name}/4k", figures[f"{who}_{kind.name}"], figures[f"{who}_4k"])
    for kind in kinds:
        report.compare(f"{kind.name}: guest/host", figures[f"guest_{kind.name}"], figures[f"host_{kind.name}"])


def _whole(text: str) -> int:
    """Return a size in whole huge pages. Raises BenchError."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise BenchError(f"--size: {error}") from None
    if size < HUGE:
        raise BenchError(f"--size {text}: at least one huge page of 2 MiB is needed")
    return -(-size // HUGE) * HUGE


@contextlib.contextmanager
def _reserved(size: int) -> Iterator[str | None]:
    """Have the host reserve huge pages for `size` bytes, and give them back; yield a sentence if it can't."""
    needed = -(-size // HUGE)
    try:
        before = int(RESERVED.read_text())
        RESERVED.write_text(str(before + needed))
    except OSError as error:
        yield f"Nothing was measured on reserved huge pages: {RESERVED}: {error.strerror}; run it as root."
        return
    try:
        got = int(RESERVED.read_text()) - before
        short = f"Nothing was measured on reserved huge pages: the host could reserve only {got} of {needed}."
        yield None if got >= needed else short
    finally:
        RESERVED.write_text(str(before))


def _compile(folder: Path) -> Path:
    """Return the host's program. Raises BenchError."""
    program = folder / "walk_host"
    compiler = build.toolchain()
    if compiler is None:
        raise BenchError("no C compiler found; install gcc (apt-get install gcc) or set CC")
    command = [compiler, "-std=gnu11", "-O2", "-o", str(program), str(WALK / "walk_host.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"walk_host.c does not compile: {done.stderr.strip()}")
    return program


def _cluster_file(kind: Pages, size: int, accesses: int) -> str:
    return f"""[cluster]
name = "pages-{kind.name}-{os.getpid()}"
[guest.walker]
program = "{WALK / "walk_guest.c"}"
args = ["{size}", "{accesses}"]
memory = {size + SPARE}
{kind.options}
"""


def _guest(folder: Path, kind: Pages, text: str) -> Callable[[], dict[str, float]]:
    file = folder / f"pages-{kind.name}.toml"

    def run() -> dict[str, float]:
        file.write_text(text)
        with Host() as host:
            cluster = host.up(file)
            try:
                guest, deadline = cluster.guests["walker"], time.monotonic() + LIMIT
                while "ns" not in guest.reports:
                    if guest.result.outcome != "running" or time.monotonic() > deadline:
                        raise BenchError(f"the guest with {kind.how} didn't come to its end: {guest.result.message}")
                    time.sleep(0.05)
                huge = sum(row["huge"] for row in guest.slots())
                mapped = guest.stats()["vm"].get("pages_2m", 0) * HUGE
                return {
                    f"guest_{kind.name}": float(guest.reports["ns"]),
                    f"guest_end_{kind.name}": float(guest.reports["end"]),
                    f"huge_{kind.name}": float(huge),
                    f"mapped_{kind.name}": float(mapped),
                }
            finally:
                cluster.down()

    return run


def _host(program: Path, kind: Pages, size: int, accesses: int) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        command = [str(program), kind.name, str(size), str(accesses)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
        if done.returncode:
            raise BenchError(f"a host process with {kind.how}: {done.stderr.strip()}")
        took, end = map(float, done.stdout.split())
        return {f"host_{kind.name}": took, f"host_end_{kind.name}": end}

    return run
