"""A machine without a VM, and the guest's side of it."""

from __future__ import annotations

import os

import pytest
from pci_driver import PCI64, Driver

from hostd.devices.machine import Machine
from hostd.memory import SlotTable


@pytest.fixture
def table():
    with SlotTable(None) as table:
        yield table


@pytest.fixture
def machine(table):
    with Machine(None, table, PCI64) as machine:
        yield machine


@pytest.fixture
def driver(machine):
    return Driver(machine)


@pytest.fixture
def eventfds():
    """Make eventfds, closed after the test."""
    made = []

    def make(count):
        fresh = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        made.extend(fresh)
        return fresh

    yield make
    for fd in made:
        os.close(fd)
