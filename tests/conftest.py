"""What tests of several packages need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from machine import Machine, build

from hostd.kvm import NoKvmError, System


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
