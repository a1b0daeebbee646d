"""What can go wrong with a network."""

from __future__ import annotations


class NetError(Exception):
    """A network, port or uplink that can't be made or used; the text is one sentence."""


class PortTimeout(NetError):
    """A time limit passed before a frame came, or before there was room for one."""


class PortGone(NetError):
    """The port is no longer one: it was closed or removed, or its switch ended for good."""
