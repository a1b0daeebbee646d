"""Look at this host: can it run guests, which, how well, and what to do about the rest."""

from __future__ import annotations

from hostd.doctor.check import Check, Status
from hostd.doctor.kvm import check_capabilities, check_kvm
from hostd.doctor.limits import check_guests
from hostd.doctor.memory import (
    check_huge_pages,
    check_memlock,
    check_memory,
    check_overcommit,
    check_shared_memory,
    check_swap,
    check_transparent,
)
from hostd.doctor.probe import KvmKind, kvm_kind
from hostd.doctor.tools import check_compiler, check_open_files, check_processor

CHECKS = (
    check_kvm,
    check_capabilities,
    check_processor,
    check_memory,
    check_swap,
    check_overcommit,
    check_shared_memory,
    check_huge_pages,
    check_transparent,
    check_memlock,
    check_open_files,
    check_guests,
    check_compiler,
)


def run_checks() -> list[Check]:
    """Do every check, in the order to show them; takes a fraction of a second."""
    return [check() for check in CHECKS]


__all__ = ["Check", "KvmKind", "Status", "kvm_kind", "run_checks"]
