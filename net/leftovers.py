"""What is left of a network when nobody took it down: its switch process, sockets, what its uplink changed on the host.

Named beforehand, and kept with the names of other leftovers in one list where a crash doesn't reach it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from collections.abc import Iterable

PREFIX = "net:"
END_TIMEOUT = 5.0
"""seconds that a killed switch has to be gone"""
CREDENTIALS = struct.Struct("iII")


def leftover(cluster: str, network: str) -> str:
    """Return what `remove_networks` takes to remove a network."""
    return f"{PREFIX}{cluster}/{network}"


def remove_networks(items: Iterable[str]) -> None:
    """Remove the networks among `items` ("net:CLUSTER/NETWORK"), which are nobody's any more."""
    found = [item.removeprefix(PREFIX) for item in items if item.startswith(PREFIX)]
    if found:  # Most clusters have none, and then need nothing of this.
        from net import naming, process

        for name in found:
            cluster, network = naming.split(name)
            end_switch(cluster, network)
            process.sweep(cluster, network)
            _undo_uplink(name)


def end_switch(cluster: str, network: str) -> None:
    """Kill the process that listens on a network's control socket, if there is one, and wait until it is gone."""
    from net import naming

    path = naming.control_path(cluster, network)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            with naming.near(path) as short:
                probe.connect(short)
            # Of a connection, these are the credentials of who began to listen.
            found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
            watched = os.pidfd_open(CREDENTIALS.unpack(found)[0])
        except OSError:
            return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(watched, signal.SIGKILL)
        select.select([watched], [], [], END_TIMEOUT)
    finally:
        os.close(watched)


def _undo_uplink(network: str) -> None:
    from net import uplink_records

    if not uplink_records.exists(network):
        return
    from net import uplink
    from net.errors import NetError

    with contextlib.suppress(NetError):
        uplink.sweep(network)
