"""What can go wrong with shared memory; every text is one sentence."""

from __future__ import annotations


class ShmError(Exception):
    """A region or channel that can't be made, joined or used.

    `sent`: how many messages of a `Sender.send_many` had been sent before this one could not be.
    """

    sent = 0


class RingError(ShmError):
    """A peer wrote something impossible into a channel. What it sent before was received; nothing after it is."""

    def __init__(self, channel: str, field: str, lane: int | None = None) -> None:
        where = "" if lane is None else f", lane {lane}"
        super().__init__(f"channel {channel}{where}: a peer spoiled its field {field}; the channel must be made anew")
        self.channel = channel
        self.field = field
        self.lane = lane


class ChannelClosed(ShmError):
    """The peer closed its end, and everything it sent has been received."""


class PeerGone(ShmError):
    """The peer died, and everything it sent has been received. A new one may take its place."""


class ChannelTimeout(ShmError):
    """The time limit passed before there was a message, or everyone was at the barrier."""


class ChannelFull(ChannelTimeout):
    """The time limit passed before there was room for the message."""


class MessageTooLong(ShmError):
    """A message over the channel's `max_message`, or over the receiver's buffer."""
