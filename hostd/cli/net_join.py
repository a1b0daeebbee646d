"""What `hostd net attach` prints: the arguments by which other programs join a network through a vhost-user port."""

from __future__ import annotations

from dataclasses import dataclass

USUAL_MTU = 1500


@dataclass(frozen=True)
class Interface:
    """The interface that a program shall have on a port: `path` is the port's socket."""

    port: str
    path: str
    mac: bytes
    mtu: int
    queues: int


def for_qemu(interface: Interface, memory: int) -> list[str]:
    """Return QEMU's arguments, for a guest with `memory` bytes: the switch maps them, so they are shared.

    QEMU connects, and connects again when the switch was started anew.
    """
    name, queues = f"net-{interface.port}", interface.queues
    device = [f"virtio-net-pci,netdev={name}", f"mac={interface.mac.hex(':')}"]
    if interface.mtu != USUAL_MTU:
        device.append(f"host_mtu={interface.mtu}")
    if queues > 1:  # A vector for each queue, one for the configuration, one for the control queue.
        device += ["mq=on", f"vectors={2 * queues + 2}"]
    backend = f"vhost-user,id={name},chardev={name}" + (f",queues={queues}" if queues > 1 else "")
    return [
        *("-m", _size(memory)),
        *("-object", f"memory-backend-memfd,id=memory,size={_size(memory)},share=on"),
        *("-machine", "memory-backend=memory"),
        *("-chardev", f"socket,id={name},path={_quoted(interface.path)},reconnect=1"),
        *("-netdev", backend),
        *("-device", ",".join(device)),
    ]


def for_dpdk(interface: Interface) -> list[str]:
    """Return the EAL's arguments for a DPDK program, which needs huge pages: the virtio-user driver joins."""
    device = [
        "net_virtio_user0",
        f"path={interface.path}",
        f"mac={interface.mac.hex(':')}",
        f"queues={interface.queues}",
        "queue_size=256",
    ]
    return ["--no-pci", "--single-file-segments", f"--file-prefix={interface.port}", f"--vdev={','.join(device)}"]


def _size(memory: int) -> str:
    """Return bytes as QEMU reads them, who takes a number alone for MiB."""
    return f"{memory >> 20}M" if memory % (1 << 20) == 0 else f"{memory}B"


def _quoted(path: str) -> str:
    """Return a path as a value among a QEMU option's, where commas are doubled."""
    return path.replace(",", ",,")
