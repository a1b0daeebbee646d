"""iperf3 in Linux guests: what it takes to run there, and what it says it measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hostd.bench import BenchError

SERVER = ("/bin/iperf3", "-s")
_CLIENT = ("/bin/iperf3", "-J", "-c")
LIBRARY = re.compile(r"(?:^|=> )\s*(/\S+) \(0x", re.MULTILINE)


def files() -> dict[str, str]:
    """Return what `files` of a guest without a root has to have: iperf3 and its libraries, by their paths there.

    They are this host's own. Raises BenchError if iperf3 is not installed.
    """
    program = shutil.which("iperf3")
    if program is None:
        raise BenchError("iperf3 is missing; install it: apt-get install --no-install-recommends iperf3")
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    libraries = LIBRARY.findall(said.stdout)
    if said.returncode or not libraries:
        raise BenchError(f"{program}: its libraries can't be found: {(said.stderr or said.stdout).strip()}")
    return {SERVER[0]: program} | {library: str(Path(library).resolve()) for library in libraries}


def client(server: str, seconds: int, *, reverse: bool = False) -> list[str]:
    """Return the command that sends TCP to `server` for `seconds` behind one that is not counted.

    `reverse`: the server sends.
    """
    command = [*_CLIENT, server, "-t", f"{seconds}", "-O", "1"]
    return [*command, "-R"] if reverse else command


def knock(server: str) -> list[str]:
    """Return the command that succeeds as soon as iperf3 answers at `server`."""
    return [*_CLIENT, server, "-n", "1K"]


def received(said: bytes) -> float:
    """Return the bytes a second that the receiver got, by the client's JSON. Raises BenchError."""
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        raise BenchError(f"iperf3 said no JSON: {said[-200:].decode(errors='replace')!r}") from None
    if "error" in found:
        raise BenchError(f"iperf3: {found['error']}")
    return float(found["end"]["sum_received"]["bits_per_second"]) / 8
