"""How much memory the host promises at once: its overcommit policy (Linux, Documentation/mm/overcommit-accounting)."""

from __future__ import annotations

from pathlib import Path

from hostd.memory.swap import MEMINFO

POLICY = Path("/proc/sys/vm/overcommit_memory")
NEVER = "2"


def refusal() -> str:
    """Return what to add to the sentence about memory that the kernel won't promise: why, and what to do."""
    try:
        policy = POLICY.read_text().strip()
        with open(MEMINFO) as file:
            values = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in file)}
    except (OSError, ValueError, IndexError):
        return ""
    if policy == NEVER:
        return (
            f"; it promises no more than it has (vm.overcommit_memory is 2): {values.get('Committed_AS', 0)} of "
            f"{values.get('CommitLimit', 0)} bytes are promised; give guests less, add swap, put RAM into a file "
            '(paged = "FOLDER"), or allow more with `sysctl vm.overcommit_memory=0` as root'
        )
    return "; it has not so much memory and swap; give the guest less, or leave `overcommit = false` out"
