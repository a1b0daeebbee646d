"""Several unikernels on one region, run in threads of this process."""

from __future__ import annotations

import os
import textwrap
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guestlib import compile_program
from hostd.boot.elf import read_image
from hostd.vmm.guest import Guest

REGION_SIZE = 4 << 20
OPTIONS = {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False}


def end(name: str, role: str, *, kind: str = "spsc", offset: int = 4096, bell: int = 0, **more: int) -> dict[str, Any]:
    """Return one end of a channel, as a guest's spec has it; `bell` and the next one are its bells."""
    numbers = {"size": 65536, "max_message": 16384, "lanes": 1, "lane": 0, "flags": 0} | more
    bells = {"data_bell": bell, "space_bell": bell + 1}
    return {"name": name, "region": 0, "kind": kind, "role": role, "offset": offset} | numbers | bells


@dataclass
class Member:
    """One guest of a party, and what came of it."""

    name: str
    source: str
    ends: list[dict[str, Any]]
    args: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)


class Party:
    """The shared region and bells, and a way to run guests on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.region = os.memfd_create("region", os.MFD_CLOEXEC)
        os.ftruncate(self.region, REGION_SIZE)
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(8)]

    def close(self) -> None:
        for descriptor in (self.region, *self.bells):
            os.close(descriptor)

    def run(self, *members: Member) -> None:
        """Run the guests side by side to their ends."""
        guests = [self._guest(member) for member in members]
        threads = [
            threading.Thread(target=self._drive, args=(m, g), daemon=True) for m, g in zip(members, guests, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        hanging = [m.name for m, t in zip(members, threads, strict=True) if t.is_alive()]
        assert not hanging, f"still running: {hanging}"

    def _guest(self, member: Member) -> Guest:
        program = self.folder / f"{member.name}.c"
        program.write_text('#include "guest.h"\n' + textwrap.dedent(member.source))
        image = read_image(compile_program([program], self.folder / f"{member.name}.elf"))
        spec = {
            "name": member.name,
            "cluster": "tests",
            "memory": 4 << 20,
            "args": member.args,
            "env": {},
            "seed": bytes(range(32)),
            "kind": "unikernel",
            "image": image.describe(),
            "options": OPTIONS,
            "regions": [{"name": "shared", "size": REGION_SIZE, "access": "rw", "raw": False}],
            "channels": member.ends,
            "slots": [],
            "framebuffer": None,
            "bells": len(self.bells),
        }
        self.files = [*getattr(self, "files", []), open(image.path, "rb")]  # noqa: SIM115 - closed with the process
        console = os.open(self.folder / f"{member.name}.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        descriptors = [self.files[-1].fileno(), self.region, *self.bells]
        guest = Guest(spec, descriptors, console, member.reports.__setitem__)
        guest.allow_console(1 << 20)
        return guest

    def _drive(self, member: Member, guest: Guest) -> None:
        result = None
        while result is None:
            result = guest.step()
        member.result = result
        member.counters = guest.counters

    def log(self, member: Member) -> str:
        return (self.folder / f"{member.name}.log").read_text()
