"""A party of a barrier."""

from __future__ import annotations

from shm._shm import lib
from shm.end import End, limit_ns


class Barrier(End):
    """Waits until all parties (`info.lanes` of them) wait; any number of times."""

    role = "join"

    def wait(self, timeout: float | None = None) -> None:
        """Wait for all the others. Raises ChannelTimeout (then `wait` again joins the same meeting).

        Raises PeerGone or ChannelClosed if one that has not arrived died or closed.
        """
        timeout_ns = limit_ns(timeout)
        result = lib.end_join(self._end, timeout_ns)
        if result:
            self._finish(result, lambda left: lib.end_join(self._end, left), timeout_ns)
