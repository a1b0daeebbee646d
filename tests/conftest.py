"""What tests of several packages need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, build

from hostd.doctor.probe import KvmKind, kvm_kind
from hostd.kvm import NoKvmError, System

HERE = Path(__file__).parent
NEED_KVM = ("bench", "cli", "guestlib", "kvm", "memory", "supervisor", "vmm")
"""folders whose tests run guests; where the host has no KVM for them, `make test` runs them in the lab"""
LAB_SLOWNESS = 8


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can't run here, and give all the rest time enough."""
    if "HOSTD_LAB" in os.environ:
        limit = float(config.getini("timeout")) * LAB_SLOWNESS
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(limit))
    elif kvm_kind() not in (KvmKind.UNIKERNEL, KvmKind.FULL):
        inside = [item for item in items if item.path.relative_to(HERE).parts[0] in NEED_KVM]
        config.hook.pytest_deselected(items=inside)
        items[:] = [item for item in items if item not in inside]


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """This host's KVM; a test that needs it is skipped only where there is none."""
    try:
        opened = System.open()
    except NoKvmError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture
def machine(system: System) -> Iterator[Machine]:
    """A VM with some memory at 0 and one vCPU."""
    made = build(system)
    yield made
    made.close()
