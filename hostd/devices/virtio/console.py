"""virtio-console: the guest's console and named ports, each of these a Unix stream socket (virtio 1.2, 5.3)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hostd.devices._devices import ffi, lib
from hostd.devices.machine import DeviceError
from hostd.devices.virtio.device import VirtioDevice

if TYPE_CHECKING:
    from hostd.devices.machine import Machine, Terminal


class Console(VirtioDevice):
    """The guest's virtio consoles. `ports` are the sockets by name."""

    kind = "console"

    def __init__(self, machine: Machine, device: Any, name: str, ports: dict[str, str]) -> None:
        super().__init__(machine, device, name)
        self.ports = ports

    def describe(self) -> dict[str, Any]:
        ports = []
        for index in range(self.c.count):
            port = self.c.ports[index]
            if port.exists:
                text = ffi.string(port.name).decode()
                counters = {what: getattr(port, what) for what in ("to_guest", "to_host", "dropped", "clients")}
                opened = {"guest_open": bool(port.guest_open), "host_open": bool(port.told_open)}
                ports.append({"name": text, "socket": self.ports.get(text), **opened, **counters})
        return {**super().describe(), "ports": ports}

    def close(self) -> None:
        """Remove the sockets' paths."""
        for path in self.ports.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.ports = {}


def add_console(
    machine: Machine,
    ports: Mapping[str, str | os.PathLike[str]],
    *,
    terminal: Terminal | None = None,
    name: str = "console",
) -> Console:
    """Add a console device with the named `ports`, each listening at its path; what is at that path goes.

    With `terminal` port 0 is a console of the guest, hvc0. Names have at most 31
    bytes. Raises DeviceError.
    """
    if len(ports) >= lib.CONSOLE_PORTS:
        raise DeviceError(22, f"console {name}: {len(ports)} ports are more than {lib.CONSOLE_PORTS - 1}")
    device = lib.virtio_console_new(machine.memory, len(ports) + 1)
    made: dict[str, str] = {}
    console = Console(machine, device, name, made)
    try:
        if terminal is not None:
            lib.virtio_console_terminal(device, b"console", terminal.c)
        for index, (port, path) in enumerate(ports.items(), 1):
            if not port or len(port.encode()) >= lib.CONSOLE_NAME:
                raise DeviceError(22, f"console {name}: port name {port!r} has not 1 to {lib.CONSOLE_NAME - 1} bytes")
            listener = _listen(f"console {name}: port {port}", os.fspath(path))
            made[port] = os.fspath(path)
            lib.virtio_console_port(device, index, port.encode(), listener)
    except Exception:
        console.close()
        raise
    return console


def _listen(where: str, path: str) -> int:
    """Return the descriptor of a socket that listens at `path`, which may be longer than a socket's name can."""
    import socket

    folder, base = os.path.split(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    try:
        directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
                listener.bind(f"/proc/self/fd/{directory}/{base}")
                listener.listen(8)
                return listener.detach()
        finally:
            os.close(directory)
    except OSError as error:
        raise DeviceError(error.errno or 0, f"{where}: no socket can be made at {path}: {error.strerror}") from None
