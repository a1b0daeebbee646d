"""dpdk-testpmd, which forwards between two vhost-user ports on one processor by its io mode: a switch's baseline."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from hostd.bench import BenchError
from hostd.bench.network_spinner import Spinner

PROGRAM = "dpdk-testpmd"
PACKAGES = "dpdk-dev"
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
START = 20.0
"""seconds that it may take to come up"""


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
    keeper = _shell(KEEPER, str(HUGE_PAGES), str(NEEDED))
    try:
        assert keeper.stdout is not None
        added = int(keeper.stdout.readline())
        yield (
            None
            if added == NEEDED
            else f"{added} of {NEEDED} huge pages could be reserved: {PROGRAM} ran without, which slows it"
        )
    finally:
        _let_go(keeper)


class Testpmd(Spinner):
    """testpmd, `pid`, with the sockets `paths` of its two ports. A context manager; the process is gone afterwards.

    Raises BenchError if it doesn't come up.
    """

    def __init__(self, cpu: int, *, huge: bool) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="hostd-bench."))
        # Who removes it, also when this process is killed.
        self._keeper = _shell('read never; rm -r "$1"', str(self._folder))
        self.paths = [str(self._folder / str(number)) for number in range(2)]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                self._command(cpu, huge),
                stdin=subprocess.PIPE,  # It would end with its input.
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RUNTIME_DIRECTORY": str(self._folder)},  # Else it leaves a folder in /run.
            )
        self.pid = self._process.pid
        try:
            self._come_up()
        except BaseException:
            self._end()
            raise

    @property
    def _said(self) -> Path:
        return self._folder / "said"

    def _command(self, cpu: int, huge: bool) -> list[str]:
        # It ends with the thread that started it, also while it is stopped.
        command = ["setpriv", "--pdeathsig", "KILL", PROGRAM]
        command += ["--in-memory", "--single-file-segments"] if huge else ["--no-huge"]
        command += ["-m", str(MEMORY), "--no-pci", "--no-telemetry", f"--lcores=0@{cpu},1@{cpu}"]
        command += [f"--file-prefix=bench{os.getpid()}"]
        command += [f"--vdev=net_vhost{number},iface={path}" for number, path in enumerate(self.paths)]
        command += ["--", "--no-mlockall", "--forward-mode=io", "--nb-cores=1", "--disable-link-check"]
        return [*command, f"--total-num-mbufs={BUFFERS}"]

    def _come_up(self) -> None:
        end = time.monotonic() + START
        while not all(map(os.path.exists, self.paths)):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > end:
                lines = [line for line in self._said.read_text(errors="replace").splitlines() if line.strip()]
                why = "ended at once" if ended else f"did not come up in {START:.0f} s"
                raise BenchError(f"{PROGRAM} {why}: {' / '.join(lines[-3:]) or 'without a word'}")
            time.sleep(0.02)

    def _end(self) -> None:
        self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        _let_go(self._keeper)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _shell(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a shell that a terminal's Ctrl-C doesn't reach, and whose input ends with this process."""
    command = ["sh", "-c", script, "sh", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _let_go(shell: subprocess.Popen[str]) -> None:
    """End a shell's input; return when it has done what it does then."""
    shell.communicate()
