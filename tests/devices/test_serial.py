"""The serial port as Linux's 8250 driver probes and uses it, and the power registers."""

from __future__ import annotations

import os
import socket

import pytest
from pci_driver import Driver

from hostd.boot.linux import layout
from hostd.devices.machine import Machine
from hostd.devices.virtio import add_console

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 3, 4, 5, 6, 7
FCR, THR = IIR, RBR
RECEIVED, EMPTY = 1, 2


class Com1:
    """The port, by register."""

    def __init__(self, machine: Machine, driver: Driver, path: str) -> None:
        self.machine, self.driver, self.path = machine, driver, path

    def __getitem__(self, register: int) -> int:
        return self.driver.inp(layout.SERIAL_PORT + register)

    def __setitem__(self, register: int, value: int) -> None:
        self.driver.outp(layout.SERIAL_PORT + register, value)

    def levels(self) -> list[int]:
        """The line's changes since the last time."""
        calls = self.driver.calls("line")
        assert all(call.number == layout.SERIAL_GSI for call in calls)
        return [call.on for call in calls]

    def attach(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(self.path)
        client.setblocking(False)
        self.driver.turn()
        return client


@pytest.fixture
def port(machine, driver, tmp_path):
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    path = str(tmp_path / "console.sock")
    machine.add_terminal(log, str(tmp_path / "log"), 1 << 20, path)
    machine.add_serial()
    yield Com1(machine, driver, path)
    machine.close()
    os.close(log)
    assert not os.path.exists(path)


def test_linux_finds_a_16550a(port):
    """drivers/tty/serial/8250: autoconfig() and autoconfig_16550a(), access by access."""
    port[IER] = 0
    assert port[IER] & 0x0F == 0
    port[IER] = 0x0F
    assert port[IER] & 0x0F == 0x0F
    port[IER] = 0
    saved = port[MCR]
    port[MCR] = 0x10 | 0x0A
    assert port[MSR] & 0xF0 == 0x90
    port[MCR] = saved
    port[LCR] = 0xBF
    port[FCR] = 0
    port[LCR] = 0
    port[FCR] = 1
    assert port[IIR] >> 6 == 3  # 16550A
    port[LCR] = 0x80
    assert port[IIR] != 0  # no EFR: not a 16650
    port[LCR] = 0xBF
    assert port[IIR] != 0
    port[LCR] = 0
    port[FCR] = 0x21
    assert not port[IIR] & 0x20  # no 64-byte FIFO
    port[IER] = 0x40
    assert not port[IER] & 0x40  # no UUE: not an XScale
    port[IER] = 0
    for value in (0x55, 0xAA):
        port[SCR] = value
        assert port[SCR] == value


def test_the_transmitter_interrupts_when_allowed(port):
    """serial8250_do_startup()'s tests for broken transmit interrupts."""
    for _ in range(2):
        port[IER] = 0
        port[IER] = EMPTY
        assert port[IIR] & 0x0F == 0x02
        assert port[IIR] & 0x0F == 0x01  # reading it takes it back
    port[IER] = 0
    assert port.levels() == [1, 0, 1, 0]
    assert port[LSR] & 0x60 == 0x60


def test_bytes_sent_are_an_edge_once_the_last_was_noticed(port, tmp_path):
    port[IER] = EMPTY
    assert port[IIR] & 0x0F == 2
    assert port.levels() == [1, 0]
    for byte in b"hi":
        port[THR] = byte
    assert port.levels() == [1]
    assert port[IIR] & 0x0F == 2
    port[THR] = 10
    assert port.levels() == [0, 1]
    assert (tmp_path / "log").read_bytes() == b"hi\n"


def test_loopback_receives_what_is_sent(port, tmp_path):
    port[FCR] = 1
    port[MCR] = 0x10
    for byte in b"abc":
        port[THR] = byte
    assert bytes(port[RBR] for _ in range(3)) == b"abc"
    assert not port[LSR] & 1
    assert (tmp_path / "log").read_bytes() == b""


def test_the_receiver_overruns_at_its_depth(port):
    port[FCR] = 1
    port[MCR] = 0x10
    for byte in range(20):
        port[THR] = byte
    assert port[LSR] & 2
    assert not port[LSR] & 2
    assert [port[RBR] for _ in range(16)] == list(range(16))
    assert not port[LSR] & 1


def test_what_is_typed_is_received(port):
    client = port.attach()
    port[FCR] = 1
    port[IER] = RECEIVED
    port.levels()
    client.send(b"hello, how are you?\n")
    port.driver.turn()
    got = b""
    while port[LSR] & 1:
        assert port[IIR] & 0x0F in (0x04, 0x0C)
        got += bytes([port[RBR]])
        port.driver.turn()
    assert got == b"hello, how are you?\n"
    assert port.levels()[0] == 1
    assert port[IIR] & 0x0F == 1
    client.close()


def test_input_waits_for_a_driver(port):
    client = port.attach()
    client.send(b"early")
    port.driver.turn()
    assert not port[LSR] & 1
    port[FCR] = 7
    port[IER] = RECEIVED
    port.driver.turn()
    assert bytes(port[RBR] for _ in range(5)) == b"early"
    client.close()


def test_a_port_that_is_open_comes_before_other_consoles(port):
    add_console(port.machine, {}, terminal=port.machine.terminal)
    client = port.attach()
    client.send(b"who?")
    port.driver.turn()
    port[FCR] = 7
    port[IER] = RECEIVED
    port.driver.turn()
    assert bytes(port[RBR] for _ in range(4)) == b"who?"
    port[IER] = 0
    client.send(b"you")
    port.driver.turn()
    assert not port[LSR] & 1
    client.close()


def test_the_divisor_is_kept_apart(port):
    port[LCR] = 0x83
    port[0], port[1] = 0x12, 0x34
    assert (port[0], port[1]) == (0x12, 0x34)
    port[LCR] = 0x03
    assert port[IER] == 0


def test_wide_accesses_are_bytes(port):
    port.driver.outp(layout.SERIAL_PORT + SCR - 1, 0xAB00, 2)
    assert port.driver.inp(layout.SERIAL_PORT + SCR - 1, 2) >> 8 == 0xAB
    assert port.driver.inp(layout.SERIAL_PORT + 4, 4) >> 24 == 0xAB


# --- power ---


@pytest.fixture
def power(machine, driver):
    machine.add_power()
    return driver


def test_power_off(power, machine):
    assert machine.handle_pending() is None
    power.outp(layout.SLEEP_CONTROL_PORT, layout.POWER_OFF_VALUE)
    assert power.ups == 1
    assert machine.handle_pending() == "off"


def test_reset(power, machine):
    power.outp(layout.RESET_PORT, layout.RESET_VALUE)
    assert power.ups == 1
    assert machine.handle_pending() == "reset"


@pytest.mark.parametrize(
    ("port", "value", "size"),
    [
        (layout.SLEEP_CONTROL_PORT, layout.SLEEP_TYPE_OFF << 2, 1),  # not enabled
        (layout.SLEEP_CONTROL_PORT, layout.SLEEP_ENABLE | 1 << 2, 1),  # S1, which there is not
        (layout.SLEEP_STATUS_PORT, 0xFF, 1),
        (layout.RESET_PORT, 0, 1),
        (layout.RESET_PORT, 0xFF, 1),
        (layout.SLEEP_CONTROL_PORT, layout.POWER_OFF_VALUE, 2),
    ],
)
def test_other_writes_leave_the_power_on(power, machine, port, value, size):
    power.outp(port, value, size)
    assert power.ups == 0
    assert machine.handle_pending() is None
    assert power.inp(layout.SLEEP_STATUS_PORT) == 0
