"""What KVM itself keeps of a guest's memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hostd.memory.layout import PAGE, SHADOWED_BYTES_PER_PAGE, TRACKED_BYTES_PER_PAGE

MODULES = Path("/sys/module")
TWO_LEVELS = ("kvm_amd/parameters/npt", "kvm_intel/parameters/ept")
YES = ("Y", "1")


def table_bytes(size: int) -> int:
    """Return how many bytes of tables KVM makes with a slot of `size` bytes, touched or not."""
    each = TRACKED_BYTES_PER_PAGE if _two_levels() else SHADOWED_BYTES_PER_PAGE
    return size // PAGE * each


def _two_levels() -> bool:
    """Tell whether the processor walks the guest's page tables and KVM's own, which then are made at need."""
    return _is_on("kvm/parameters/tdp_mmu") and any(_is_on(path) for path in TWO_LEVELS)


def _is_on(path: str) -> bool:
    with contextlib.suppress(OSError):
        return (MODULES / path).read_text().strip() in YES
    return False
