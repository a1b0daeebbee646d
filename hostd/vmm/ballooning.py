"""A Linux guest's balloon, when somebody asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostd.vmm.process import GuestProcess


def balloon(process: GuestProcess, message: dict[str, Any]) -> dict[str, Any]:
    """Set the balloon's `target` (bytes), if it is given; return what it holds, gave back, and what the guest says.

    Raises ValueError, OSError.
    """
    guest = process.guest
    if guest is None or process.result is not None:
        raise ValueError("its guest does not run")
    device = getattr(guest, "balloon", None)
    if device is None:
        raise ValueError(
            "has no balloon; leave `balloon = false` out of the cluster file"
            if hasattr(guest, "balloon")
            else "a unikernel has no balloon; it gives memory back itself (guest_give_back)"
        )
    if message.get("target") is not None:
        device.set_target(message["target"])
    return {**device.describe(), "guest": device.statistics()}
