"""Run one unikernel in this process, without a supervisor."""

from __future__ import annotations

import os
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guestlib import compile_program
from hostd.boot.elf import read_image
from hostd.vmm.guest import Guest

OPTIONS = {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False}


@dataclass
class Ended:
    """What came of a guest."""

    result: dict[str, Any]
    reports: dict[str, Any]
    console: str
    guest: Guest = field(repr=False)


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that compiles and runs a program's C text to its end, with `beside` in a thread beside it."""

    def run_program(
        source: str,
        *,
        regions: list[tuple[str, int, str]] = [],  # noqa: B006
        beside: Callable[[Guest], None] = lambda guest: None,
        **spec: Any,
    ) -> Ended:
        program = tmp_path / "prog.c"
        program.write_text('#include "guest.h"\n' + textwrap.dedent(source))
        image = read_image(compile_program([program], tmp_path / "prog.elf"))
        sizes = [os.fstat(descriptor).st_size for _, descriptor, _ in regions]
        full: dict[str, Any] = {
            "name": "tested",
            "cluster": "tests",
            "memory": 4 << 20,
            "args": [],
            "env": {},
            "seed": bytes(range(32)),
            "kind": "unikernel",
            "image": image.describe(),
            "options": OPTIONS,
            "regions": [
                {"name": name, "size": size, "access": access, "raw": True}
                for (name, _, access), size in zip(regions, sizes, strict=True)
            ],
            "channels": [],
            "slots": [],
            "framebuffer": None,
            "bells": 0,
        } | spec
        bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(full["bells"])]
        reports: dict[str, Any] = {}
        with open(image.path, "rb") as file, (tmp_path / "console").open("wb+") as console:
            descriptors = [file.fileno(), *(descriptor for _, descriptor, _ in regions), *bells]
            guest = Guest(full, descriptors, console.fileno(), reports.__setitem__)
            guest.allow_console(1 << 20)
            other = threading.Thread(target=beside, args=(guest,))
            other.start()
            result = None
            while result is None:
                result = guest.step()
                guest.rest()
            guest.leave()
            other.join()
        for bell in bells:
            os.close(bell)
        return Ended(result, reports, (tmp_path / "console").read_text(), guest)

    return run_program
