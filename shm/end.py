"""What all ends of channels have in common: opening, waiting, results as exceptions, closing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from shm._shm import ffi, lib
from shm.errors import ChannelClosed, ChannelTimeout, MessageTooLong, PeerGone, RingError, ShmError
from shm.layout import ROLES, ChannelInfo

if TYPE_CHECKING:
    from shm.region import Region

SPIN_ALWAYS = lib.END_SPIN_ALWAYS
INTERRUPTED = lib.END_INTERRUPTED
FOREVER = -1


def limit_ns(timeout: float | None) -> int:
    """Return a time limit in seconds as the C side takes it."""
    return FOREVER if timeout is None else max(0, int(timeout * 1e9))


class End:
    """One end of a channel; one thread's at a time. A context manager; closing tells the peers.

    `spin_ns`: how long a wait spins before it sleeps on the bell; `SPIN_ALWAYS` never sleeps.
    """

    role = ""
    timeout_error = ChannelTimeout

    def __init__(self, region: Region, info: ChannelInfo, lane: int) -> None:
        self.name = f"{region.name}/{info.name}"
        self.info = info
        self.lane = lane
        self._region: Region | None = region
        self._end = ffi.new("struct shm_end *")
        result = region._open_end(self._end, info, lane, ROLES.index(self.role))
        if result:
            self._region = None
            self._raise(result)

    @property
    def spin_ns(self) -> int:
        """How long a wait spins before it sleeps, in ns."""
        return int(self._end.spin_ns)

    @spin_ns.setter
    def spin_ns(self, value: int) -> None:
        self._end.spin_ns = value

    @property
    def sleeps(self) -> int:
        """How often this end went to sleep on its bell."""
        return int(self._end.sleeps)

    @property
    def rings(self) -> int:
        """How often this end rang its peer's bell."""
        return int(self._end.rings)

    @property
    def late(self) -> int:
        """How often a sleep ended by the clock though what it waited for was there: a bell that did not ring."""
        return int(self._end.late)

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._region is None

    def close(self) -> None:
        """Close this end: the peers learn it once they have received what was sent. A second time does nothing."""
        region, self._region = self._region, None
        if region is not None:
            lib.end_close(self._end, True)
            region._let_go(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{' closed' if self.closed else ''}>"

    def _finish(self, result: int, call: Callable[[int], int], timeout_ns: int) -> int:
        """Go on with a call that signals interrupted; return its result. Raises what the result means."""
        start = time.monotonic_ns()
        left = timeout_ns
        while result == INTERRUPTED:  # Python's signal handlers run here.
            if timeout_ns > 0:
                left = max(0, timeout_ns - (time.monotonic_ns() - start))
            result = call(left)
        if result < 0:
            self._raise(result)
        return result

    def _raise(self, result: int) -> NoReturn:
        where = f"channel {self.name}"
        field = ffi.string(self._end.field).decode() if self._end.field != ffi.NULL else "?"
        if result == lib.END_TIMEOUT:
            raise self.timeout_error(f"{where}: the time limit passed")
        if result == lib.SHM_E_CLOSED:
            raise ChannelClosed(f"{where}: its other end was closed")
        if result == lib.SHM_E_GONE:
            raise PeerGone(f"{where}: its other end died")
        if result == lib.SHM_E_CORRUPT:
            lane = lib.end_lane(self._end) if self.info.kind == "mpsc" else None
            raise RingError(self.name, field, lane)
        if result == lib.SHM_E_TOO_LONG:
            raise MessageTooLong(f"{where}: the message is longer than {self._room()}")
        if result == lib.END_SYSTEM:
            raise ShmError(f"{where}: {os.strerror(ffi.errno)}")
        reasons = {
            lib.END_BUSY: "another thread is using this end; open one for each thread, or take turns",
            lib.END_CLOSING: "this end is closed",
            lib.END_ROLE: f"a {self.role} end of a {self.info.kind} can't do this",
            lib.SHM_E_CONFIG: f"its {field} can't be",
        }
        raise ShmError(f"{where}: {reasons.get(result, f'result {result}')}")

    def _room(self) -> str:
        return f"max_message, {self.info.max_message} bytes"
