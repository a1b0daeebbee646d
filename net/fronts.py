"""The front ends of vhost-user ports: who is connected, and how those before ended."""

from __future__ import annotations

from typing import Any

from net._net import ffi, lib


def front(pointer: Any, number: int) -> dict[str, Any] | None:
    """Return what is known of the front end of a port of the switch at `pointer`; None of a port of another kind.

    `sessions`: front ends that have come; `errors`: how many were thrown out, by reason; `regions` of memory; `receive`
    and `transmit`: queues in use; `features` and `protocol`: negotiated (virtio 1.2, 5.1.3; vhost-user).
    """
    info = ffi.new("struct vhost_info *")
    if not lib.front_look(pointer, number, info):
        return None
    names = (ffi.string(lib.port_error_name(error)).decode() for error in range(lib.PORT_ERRORS))
    known: dict[str, Any] = {"connected": bool(info.connected)}
    known |= {key: getattr(info, key) for key in ("sessions", "features", "protocol", "regions", "receive", "transmit")}
    return known | {"errors": {name: count for name, count in zip(names, info.errors, strict=True) if count}}
