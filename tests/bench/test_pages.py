"""`hostd bench pages`, small: real guests, real host processes."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.bench import pages

NAMES = ("4k", "thp", "hugetlb")


@pytest.fixture
def alone() -> Iterator[None]:
    """Have the host's reserved pages for this test: their number is one for the whole host."""
    with (Path(tempfile.gettempdir()) / f"hostd-tests-hugepages-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hostd.cli", "bench", "pages", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_guests_and_host_processes_are_measured_side_by_side(alone: None) -> None:
    before = pages.RESERVED.read_text()
    done = bench("--size", "5MiB", "--accesses", "20000", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert pages.RESERVED.read_text() == before
    report = json.loads(done.stdout)
    figures = {figure["name"]: figure for figure in report["figures"]}
    kinds = NAMES if f"guest_{NAMES[2]}" in figures else NAMES[:2]
    assert set(figures) == {f"{who}_{kind}" for who in ("guest", "host") for kind in kinds}
    assert all(figure["rounds"][0] > 0 for figure in figures.values())
    assert all(figure["baseline"] == name.startswith("host") for name, figure in figures.items())
    notes = "\n".join(report["notes"])
    # Mapped so by KVM: the guest's own page tables have large pages, and its addresses lie as the host's do.
    assert "guest_4k: 0% of the memory lay in the host's huge pages, KVM had mapped 0% so." in notes
    assert "guest_thp: 100% of the memory lay in the host's huge pages, KVM had mapped 100% so." in notes
    if kinds is NAMES:
        assert "guest_hugetlb: 100% of the memory lay in the host's huge pages, KVM had mapped 100% so." in notes
    else:
        assert "Nothing was measured on reserved huge pages" in notes


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--size", "1KiB"), "--size 1KiB: at least one huge page of 2 MiB is needed"),
        (("--size", "much"), "--size: "),
        (("--accesses", "3"), "--accesses 3: from 1000 to 10000000000 are possible"),
    ],
)
def test_what_can_not_be_measured(arguments: tuple[str, ...], sentence: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
