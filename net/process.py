"""Starting a switch process, and clearing away after one that was killed.

process, connection = spawn(Configuration("c", "lan", mtu=9000))
client = Client(connection)                         # raises NetError if the switch could not start

The connection is the switch's lifeline, unless its configuration says otherwise: when it breaks, the switch ends. After
a switch was killed another one is spawned, which gets its ports anew: a ring port's region survives and is used where
it stood, a vhost-user front end connects again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass

from net import naming, wire


@dataclass(frozen=True)
class Configuration:
    """What a switch is started with. `age` in seconds, `spin` in microseconds, `mtu` in bytes.

    `lifeline`: it ends with the connection that it was started with, and with its starter.
    """

    cluster: str
    network: str
    mtu: int = 1500
    age: int = 300
    spin: int | None = None
    """None: 50, or 0 where it has one processor only"""
    addresses: int = 4096
    cpu: int | None = None
    """the CPU that forwards"""
    lifeline: bool = True


def command(descriptor: int) -> list[str]:
    """Return the command line of a switch process that inherits its end of a connection as `descriptor`."""
    return [sys.executable, "-m", "net.server", str(descriptor)]


def configure(connection: socket.socket, configuration: Configuration) -> None:
    """Tell a switch process that was just started what it is. Raises OSError."""
    connection.sendall(wire.pack(asdict(configuration), wire.REQUEST_LIMIT))


def spawn(configuration: Configuration, *, stderr: int | None = None) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a switch process; return it and the connection to it, at once: a client's hello tells whether it came up.

    Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            configure(ours, configuration)
            process = subprocess.Popen(
                command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def sweep(cluster: str, network: str) -> None:
    """Remove what a killed switch left: the sockets in its folder, and the folder. For its starter only."""
    place = naming.folder(cluster, network)
    with contextlib.suppress(OSError):
        for entry in place.iterdir():
            entry.unlink(missing_ok=True)
    for path in (place, place.parent):
        with contextlib.suppress(OSError):
            os.rmdir(path)
