"""The kernel's own merging of equal pages (KSM): turned on for a while, and put back as it was whatever happens.

Linux, Documentation/admin-guide/mm/ksm.rst.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

from hostd.bench import BenchError
from hostd.supervisor.processes import cpu_seconds

FOLDER = Path("/sys/kernel/mm/ksm")
EAGER = {"pages_to_scan": 20_000, "sleep_millisecs": 10, "run": 1}
"""as fast as it goes: what is wanted is what it merges in the end"""
KEEPER = 'trap "" INT TERM HUP; cat >/dev/null; cd "$1" && shift && for pair; do echo "${pair#*=}" >"${pair%%=*}"; done'
SETTLED_SCANS = 3
"""whole scans without a change after which there is nothing left to merge: a page is merged in the second at best"""


def missing() -> str | None:
    """Return why pages can't be merged here, in a clause, or None."""
    if not (FOLDER / "run").exists():
        return "this kernel has no KSM"
    if not os.access(FOLDER / "run", os.W_OK):
        return f"only root may turn KSM on ({FOLDER}/run)"
    return None


class Merging:
    """KSM at work while the context lasts. What was set before comes back, also if this process is killed."""

    def __enter__(self) -> Merging:
        before = {name: (FOLDER / name).read_text().strip() for name in EAGER}
        pairs = [f"{name}={value}" for name, value in before.items()]
        # Whoever ends it, by closing its input or by dying, has it put everything back.
        self._keeper = subprocess.Popen(
            ["sh", "-c", KEEPER, "ksm", str(FOLDER), *pairs], stdin=subprocess.PIPE, start_new_session=True
        )
        self._pid = _daemon()
        self._spent = self._cpu()
        try:
            for name, value in EAGER.items():
                self._set(name, value)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()

    async def settled(self) -> bool:
        """Wait a moment; tell whether nothing more was merged meanwhile, in enough scans."""
        scans, merged = self._get("full_scans"), self._get("pages_sharing")
        limit = time.monotonic() + 10.0
        while self._get("full_scans") < scans + SETTLED_SCANS and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        return self._get("pages_sharing") <= merged * 1.001

    def pause(self) -> None:
        """Stop looking for more; what is merged stays so."""
        self._set("run", 0)

    def go_on(self) -> None:
        self._set("run", 1)

    @property
    def spent(self) -> float:
        """Seconds of processor time that merging has taken so far."""
        return self._cpu() - self._spent

    def _cpu(self) -> float:
        return 0.0 if self._pid is None else cpu_seconds(self._pid)

    def _get(self, name: str) -> int:
        return int((FOLDER / name).read_text())

    def _set(self, name: str, value: int) -> None:
        try:
            (FOLDER / name).write_text(str(value))
        except OSError as error:
            raise BenchError(f"{FOLDER}/{name} can't be set: {error.strerror}; run it as root") from None


def _daemon() -> int | None:
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == "ksmd\n":
                return int(path.parent.name)
        except OSError:
            continue
    return None
