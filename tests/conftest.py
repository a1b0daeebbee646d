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
NEED_KVM = (
    *("bench", "cli", "doctor", "kvm", "lab", "memory", "supervisor", "vmm"),
    *(f"guestlib/test_{part}.py" for part in ("channels", "net_guest", "net_pairs", "net_switch")),
)
"""what runs guests, beside the tests with the fixture `system`; without KVM `make test` runs these in the lab"""
LAB_SLOWNESS = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make test` say what it wants of the lab."""
    parser.addoption("--only-kvm", action="store_true", help="run only what is left out on a host without KVM")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can't run here, and give all the rest time enough."""
    if "HOSTD_LAB" in os.environ:
        limit = float(config.getini("timeout")) * LAB_SLOWNESS
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(limit))
    elif not config.option.only_kvm and kvm_kind() not in (KvmKind.UNIKERNEL, KvmKind.FULL):
        _keep([item for item in items if not _needs_kvm(item)], config, items)
    if config.option.only_kvm:
        _keep([item for item in items if _needs_kvm(item)], config, items)


def _needs_kvm(item: pytest.Item) -> bool:
    return "system" in getattr(item, "fixturenames", ()) or any(
        item.path.is_relative_to(HERE / part) for part in NEED_KVM
    )


def _keep(kept: list[pytest.Item], config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


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
