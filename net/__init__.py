"""The virtual network: an Ethernet switch whose ports are rings in mapped memory.

with net.attach("cluster/lan", name="probe") as port:       # this process is a port of a network that runs
    port.send(frame)
    print(port.recv())

See docs/network.md.
"""

from __future__ import annotations

from net.errors import NetError, PortGone, PortTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from net.port import HostPort, Offload, attach

__all__ = ["HostPort", "NetError", "Offload", "PortGone", "PortTimeout", "attach"]


def __getattr__(name: str) -> Any:
    # Imported when they are first asked for: a switch's process has no use for them.
    if name not in __all__:
        raise AttributeError(f"module 'net' has no attribute {name!r}")
    from net import port

    return getattr(port, name)
