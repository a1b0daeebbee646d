"""Holding a guest's vCPUs for a moment, while something is done to its memory that they must not meet half done."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostd.kvm import Vcpu


class Pause:
    """Between a guest's vCPU threads, which call `rest` each time their vCPU came back, and who wants them to."""

    def __init__(self, vcpus: Sequence[Vcpu]) -> None:
        self._vcpus = vcpus
        self._change = threading.Condition()
        self._wanted = False
        self._resting = 0
        self._running = len(vcpus)

    def rest(self) -> None:
        """In a vCPU's thread: wait here as long as somebody wants the guest to stand still."""
        with self._change:
            while self._wanted:
                self._resting += 1
                self._change.notify_all()
                self._change.wait()
                self._resting -= 1

    def leave(self) -> None:
        """In a vCPU's thread: it runs no more, so nobody need wait for it."""
        with self._change:
            self._running -= 1
            self._change.notify_all()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No vCPU runs inside this context."""
        with self._change:
            self._wanted = True
        for vcpu in self._vcpus:
            vcpu.stop()
        with self._change:
            self._change.wait_for(lambda: self._resting >= self._running)
        try:
            yield
        finally:
            with self._change:
                self._wanted = False
                self._change.notify_all()
