"""Holding a guest's vCPUs, for a moment or as long as somebody looks at them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostd.kvm import Vcpu


class Pause:
    """Between a guest's vCPU threads, which call `rest` each time their vCPU came back, and who wants them to.

    `paused` is for work on the guest's memory that its vCPUs must not meet half done; several threads may want it at a
    time. `hold` and `release` are a debugger's, by the vCPU.
    """

    def __init__(self, vcpus: Sequence[Vcpu]) -> None:
        self._vcpus = vcpus
        self._change = threading.Condition()
        self._wanted = 0
        self._held: set[int] = set()
        self._resting: set[int] = set()
        self._running = set(range(len(vcpus)))
        self._ending = False

    def rest(self, index: int = 0) -> None:
        """In the thread of vCPU `index`: wait here as long as somebody wants it to stand still."""
        with self._change:
            while self._wanted or index in self._held:
                self._resting.add(index)
                self._change.notify_all()
                self._change.wait()
                self._resting.discard(index)

    def leave(self, index: int = 0) -> None:
        """In the thread of vCPU `index`: it runs no more, so nobody need wait for it."""
        with self._change:
            self._running.discard(index)
            self._change.notify_all()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No vCPU runs inside this context."""
        with self._change:
            self._wanted += 1
        try:
            self._stop(range(len(self._vcpus)))
            self.wait_still()
            yield
        finally:
            with self._change:
                self._wanted -= 1
                self._change.notify_all()

    def hold(self, indices: Iterable[int], *, by: int | None = None) -> None:
        """Have these vCPUs stand still until they are released, or the guest ends; returns at once.

        `by`: the vCPU whose thread calls.
        """
        wanted = set(indices)
        with self._change:
            if self._ending:
                return
            self._held |= wanted
        self._stop(wanted - {by})

    def release(self, indices: Iterable[int]) -> None:
        """Let vCPUs run on that were held."""
        with self._change:
            self._held -= set(indices)
            self._change.notify_all()

    def wait_still(self) -> None:
        """Wait until no vCPU runs; all must have been asked to stand still. Not for a vCPU's thread."""
        with self._change:
            self._change.wait_for(lambda: self._resting >= self._running)

    def end(self) -> None:
        """Hold nobody any more: the guest is to end."""
        with self._change:
            self._ending = True
            self._held.clear()
            self._change.notify_all()

    def _stop(self, indices: Iterable[int]) -> None:
        for index in indices:
            if index not in self._resting:
                self._vcpus[index].stop()
