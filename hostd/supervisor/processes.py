"""Other processes, told apart from later ones of the same id by when they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

Process = dict[str, Any]
"""{"pid", "start"}: a process id and its start in clock ticks since boot (proc(5), stat field 22)"""


def identify(pid: int) -> Process | None:
    """Return what tells process `pid` from a later one, or None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else {"pid": pid, "start": int(fields[19])}


def alive(process: Process | None) -> bool:
    """Tell whether `process` still runs."""
    return process is not None and identify(process["pid"]) == process


def end(process: Process | None) -> None:
    """Kill `process` if it still runs."""
    if process is not None and alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], signal.SIGKILL)


def holder(path: Path) -> bool:
    """Tell whether somebody listens on the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def proportional_size(pid: int) -> int:
    """Return the bytes that process `pid` takes, each page divided by those who map it (PSS). Raises OSError."""
    with Path(f"/proc/{pid}/smaps_rollup").open() as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def cpu_seconds(pid: int) -> float:
    """Return the seconds of processor time that process `pid` has used (proc(5), stat). Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
