"""What can go wrong with a network."""

from __future__ import annotations


class NetError(Exception):
    """A network, port or uplink that can't be made or used; the text is one sentence."""
