"""Shared memory of guests, the host and host processes: regions, and channels in them.

with shm.Region.create("me/link", channels=[shm.ChannelSpec("words")]) as region:    # here
    with region.sender("words") as words:
        words.send(b"hello")
with shm.Region.open("me/link") as region, region.receiver("words") as words:        # in another process
    print(words.recv())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shm.errors import (
    ChannelClosed,
    ChannelFull,
    ChannelTimeout,
    MessageTooLong,
    PeerGone,
    RingError,
    ShmError,
)
from shm.naming import leftovers, runtime_dir, sweep

if TYPE_CHECKING:
    from shm.barrier import Barrier
    from shm.broker import Broker
    from shm.end import SPIN_ALWAYS
    from shm.layout import ChannelInfo, ChannelSpec
    from shm.receiver import Receiver
    from shm.region import Region
    from shm.request import Replier, Requester, RequestFailed
    from shm.sender import Sender

__all__ = [
    "SPIN_ALWAYS",
    "Barrier",
    "Broker",
    "ChannelClosed",
    "ChannelFull",
    "ChannelInfo",
    "ChannelSpec",
    "ChannelTimeout",
    "MessageTooLong",
    "PeerGone",
    "Receiver",
    "Region",
    "Replier",
    "RequestFailed",
    "Requester",
    "RingError",
    "Sender",
    "ShmError",
    "leftovers",
    "runtime_dir",
    "sweep",
]

# Imported when they are first asked for: who needs only a name or an exception stays small.
_WHERE = {
    "SPIN_ALWAYS": "end",
    "Barrier": "barrier",
    "Broker": "broker",
    "ChannelInfo": "layout",
    "ChannelSpec": "layout",
    "Receiver": "receiver",
    "Region": "region",
    "Replier": "request",
    "RequestFailed": "request",
    "Requester": "request",
    "Sender": "sender",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'shm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"shm.{_WHERE[name]}"), name)
