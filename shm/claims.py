"""Who has which end of a region's channels: each but a broadcast's receivers is one holder's at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from shm.errors import ShmError
from shm.layout import ChannelInfo

End = tuple[str, str, int]
"""channel, role, lane"""


class Claims:
    """The ends of one region and their holders (any object). Safe to use from several threads."""

    def __init__(self, region: str, channels: Mapping[str, ChannelInfo]) -> None:
        self._region = region
        self._channels = channels
        self._holders: dict[End, object] = {}
        self._lock = threading.Lock()

    def reserve(self, ends: Iterable[End]) -> None:
        """Keep `ends` for guests: nobody else gets them."""
        with self._lock:
            for channel, role, lane in ends:
                if not self._shared(channel, role):
                    self._holders[channel, role, self._lane(channel, role, lane)] = "a guest"

    def claim(self, channel: str, role: str, lane: int | None, holder: object) -> int:
        """Give an end to `holder`; return its lane (`lane`, or the first that is free). Raises ShmError."""
        where = f"region {self._region}: channel {channel}"
        info = self._channels.get(channel)
        if info is None:
            there = ", ".join(self._channels) or "it has none"
            raise ShmError(f"{where} does not exist (there: {there})")
        roles = ("join",) if info.kind == "barrier" else ("send", "receive")
        if role not in roles:
            raise ShmError(f"{where}: {role!r} is no role in a {info.kind}; use {' or '.join(roles)}")
        many = self._many(info, role)
        if lane is not None and not 0 <= lane < (info.lanes if many else 1):
            raise ShmError(f"{where}: lane {lane} does not exist, there are {info.lanes if many else 1}")
        if self._shared(channel, role):
            return 0
        with self._lock:
            wanted = [lane] if lane is not None else range(info.lanes if many else 1)
            for number in wanted:
                if (channel, role, number) not in self._holders:
                    self._holders[channel, role, number] = holder
                    return number
            owner = self._holders[channel, role, wanted[0]]
        whose = owner if isinstance(owner, str) else "another process"
        ends = f"all {info.lanes} lanes are" if many and lane is None else "that end is"
        raise ShmError(f"{where}: cannot {role}: {ends} taken (by {whose}); close it there first")

    def release(self, end: End, holder: object) -> bool:
        """Take an end back, if it is the holder's."""
        with self._lock:
            if self._holders.get(end) is not holder:
                return False
            del self._holders[end]
            return True

    def release_all(self, holder: object) -> list[End]:
        """Take all of the holder's ends back and return them."""
        with self._lock:
            ends = [end for end, owner in self._holders.items() if owner is holder]
            for end in ends:
                del self._holders[end]
            return ends

    def holds(self, end: End) -> bool:
        """Tell whether somebody has the end."""
        with self._lock:
            return end in self._holders

    def _lane(self, channel: str, role: str, lane: int) -> int:
        return lane if self._many(self._channels[channel], role) else 0

    @staticmethod
    def _many(info: ChannelInfo, role: str) -> bool:
        return role == "join" or (info.kind == "mpsc" and role == "send")

    def _shared(self, channel: str, role: str) -> bool:
        return self._channels[channel].kind == "broadcast" and role == "receive"
