"""dpdk-testpmd, which forwards between two vhost-user ports on one processor by its io mode: a switch's baseline."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from hostd.bench.network_spinner import Spinner

PROGRAM = "dpdk-testpmd"
PACKAGES = "dpdk-dev librte-net-vhost23 librte-mempool-ring23"
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
NEEDED = 56
"""huge pages: 112 MiB"""
KEEPER = """
read before < "$1"
echo $((before + $2)) > "$1"
read now < "$1"
added=$((now - before))
echo $added
read never
read now < "$1"
echo $((now > added ? now - added : 0)) > "$1"
"""
MEMORY = 100
"""MiB of them that testpmd takes"""
BUFFERS = 8192


def missing() -> str | None:
    """Return why testpmd can't be run here, in one sentence; None where it can."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is missing; install it: apt-get install --no-install-recommends {PACKAGES}"
    return None


@contextlib.contextmanager
def huge_pages() -> Iterator[str | None]:
    """Reserve huge pages and give them back; yield why there are none, in one sentence, or None.

    A shell gives them back, when its input ends: so also when this process is killed.
    """
    try:
        before = int(HUGE_PAGES.read_text())
        HUGE_PAGES.write_text(f"{before}\n")  # May it be written?
    except OSError as error:
        yield f"{HUGE_PAGES} can't be set ({error.strerror}): {PROGRAM} ran without huge pages, which slows it; be root"
        return
    command = ["sh", "-c", KEEPER, "sh", str(HUGE_PAGES), str(NEEDED)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        added = int(keeper.stdout.readline())
        try:
            yield (
                None
                if added == NEEDED
                else f"{added} of {NEEDED} huge pages could be reserved: {PROGRAM} ran without, which slows it"
            )
        finally:
            keeper.stdin.close()
            keeper.wait()


class Testpmd(Spinner):
    """testpmd, `pid`, with the sockets `paths` of its two ports. A context manager; the process is gone afterwards."""

    def __init__(self, cpu: int, *, huge: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hostd-bench.")
        self.paths = [f"{self._folder.name}/{number}" for number in range(2)]
        memory = ["--in-memory", "--single-file-segments"] if huge else ["--no-huge"]
        # It ends with the thread that started it, also while it is stopped.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            PROGRAM,
            *memory,
            "-m",
            str(MEMORY),
            "--no-pci",
            "--no-telemetry",
            f"--lcores=0@{cpu},1@{cpu}",
        ]
        command += [f"--file-prefix=bench{os.getpid()}"]
        command += [f"--vdev=net_vhost{number},iface={path}" for number, path in enumerate(self.paths)]
        command += [
            "--",
            "--no-mlockall",
            "--forward-mode=io",
            "--nb-cores=1",
            "--disable-link-check",
            f"--total-num-mbufs={BUFFERS}",
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # It would end with its input.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def _end(self) -> None:
        self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
