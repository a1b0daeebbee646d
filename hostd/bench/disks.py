"""One file that several Linux guests read: as a pmem disk with DAX, beside virtio-blk.

With DAX the file's pages in the host's page cache are the guests' page cache, once for all of them. With virtio-blk
each guest copies what it reads into its own memory, and the host may have it once more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hostd.bench import BenchError
from hostd.bench.host_memory import available
from hostd.bench.report import Report
from hostd.bench.rounds import Measurement, Tell, interleave
from hostd.cluster.sizes import parse_size
from hostd.host import BackgroundCluster, Host
from hostd.images import file_systems

EXAMPLES = ("hostd bench disks debian-cloud", "hostd bench disks debian-cloud --guests 4 --size 64MiB --json")
KINDS = {"pmem": ("/dev/pmem0", "ro,dax=always"), "blk": ("/dev/vda", "ro")}
BOOT_LIMIT = 400.0
MAKING = 1_600_000_000
"""seconds: the time of the file system's making; any will do"""
SPARE = 96 << 20
"""bytes of memory that a guest has beside the file's size: its kernel, and what it runs"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add which kernel, how many guests and how large a file."""
    parser.add_argument("kernel", help="an image's name or the path of a kernel")
    parser.add_argument("--guests", type=int, default=3, help="guests that read the file (default: 3)")
    parser.add_argument("--size", default="64MiB", help="of the file (default: 64MiB)")


def measure(options: argparse.Namespace, tell: Tell) -> Report:
    """Have guests read one file by both kinds of disk, in turn.

    Raises BenchError, ImageStoreError, and what bringing up a cluster raises.
    """
    size, guests = parse_size(options.size), options.guests
    report = Report(bench="disks", command="", machine={})
    with tempfile.TemporaryDirectory(prefix="hostd-disks-") as name:
        folder = Path(name)
        disk = _disk(folder, size)
        texts = {kind: _cluster_file(options.kernel, disk, kind, guests, size) for kind in KINDS}
        report.cluster_files = {f"disks-{kind}.toml": text for kind, text in texts.items()}
        measurements = [Measurement(kind, _one(folder, kind, text, guests, size)) for kind, text in texts.items()]
        found = interleave(measurements, options.rounds, tell, warm_up=False)
    how = f"{guests} guests, each reading a file of {size} bytes, one after the other; "
    units = {
        "memory": ("bytes", "fall of the host's MemAvailable while they read, unmapped page cache dropped, per guest"),
        "first_read": ("s", "the first guest's time: the file comes from the host's page cache"),
        "again": ("s", "mean of reading it a second time, out of the guest's page cache"),
    }
    for figure, (unit, what) in units.items():
        ours, theirs = (
            report.add(f"{kind}_{figure}", found[f"{kind}_{figure}"], unit, how + what, baseline=kind == "blk")
            for kind in KINDS
        )
        report.compare(f"{figure}: pmem/blk", ours, theirs)
    return report


def _disk(folder: Path, size: int) -> Path:
    """Make an ext4 with one file, `data`, of `size` random bytes."""
    content, disk = folder / "content", folder / "disk.ext4"
    content.mkdir()
    (content / "data").write_bytes(os.urandom(size))
    file_systems.write(content, disk, "ext4", None, MAKING)
    shutil.rmtree(content)
    return disk


def _cluster_file(kernel: str, disk: Path, kind: str, guests: int, size: int) -> str:
    return f"""[cluster]
name = "disks-{kind}-{os.getpid()}"
[guest.reader]
kernel = "{kernel}"
count = {guests}
memory = {(size + SPARE) >> 20 << 20}
[[guest.reader.disk]]
file = "{disk}"
device = "{kind}"
access = "ro"
"""


def _one(folder: Path, kind: str, text: str, guests: int, size: int) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        file = folder / f"disks-{kind}.toml"
        file.write_text(text)
        with _up(file) as cluster:
            names = list(cluster.guests)
            device, mount_options = KINDS[kind]
            for name in names:
                _sh(cluster, name, f"mkdir -p /mnt && mount -t ext4 -o {mount_options} {device} /mnt")
            before = available()
            first = [_read(cluster, name, size) for name in names]
            memory = (before - available()) / guests
            again = [_read(cluster, name, size) for name in names]
        return {f"{kind}_memory": memory, f"{kind}_first_read": first[0], f"{kind}_again": sum(again) / guests}

    return run


@contextlib.contextmanager
def _up(file: Path) -> Iterator[BackgroundCluster]:
    with Host() as host:
        cluster = host.up(file)
        try:
            yield cluster
        finally:
            cluster.down()


def _read(cluster: BackgroundCluster, guest: str, size: int) -> float:
    """Read the file in the guest; return how long that took there, in seconds."""
    start = time.monotonic()
    said = _sh(cluster, guest, "cat /mnt/data | wc -c")
    seconds = time.monotonic() - start
    if said.strip() != str(size):
        raise BenchError(f"guest {guest}: read {said.strip()!r} bytes of the {size} of the file")
    return seconds


def _sh(cluster: BackgroundCluster, guest: str, command: str) -> str:
    done = cluster.guests[guest].exec("sh", "-c", command, wait=BOOT_LIMIT)
    if done.exit_code:
        raise BenchError(f"guest {guest}: {command!r} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()
