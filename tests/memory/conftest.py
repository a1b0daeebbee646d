"""What tests of the slot table need."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.memory import SlotTable

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
RESERVED = 4


@pytest.fixture
def table() -> Iterator[SlotTable]:
    """A table without a guest."""
    with SlotTable(None) as made:
        yield made


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """Reserve a few 2 MiB pages more than there were, and give them back; how many."""
    # Tests run side by side: the number is one for the whole host.
    with (Path(tempfile.gettempdir()) / f"hostd-tests-hugepages-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(HUGE_PAGES.read_text())
        try:
            HUGE_PAGES.write_text(str(before + RESERVED))
        except OSError as error:
            pytest.skip(f"huge pages cannot be reserved: {error}")
        try:
            got = int(HUGE_PAGES.read_text()) - before
            if got < RESERVED:
                pytest.skip(f"the host could reserve only {got} huge pages")
            yield RESERVED
        finally:
            HUGE_PAGES.write_text(str(before))
