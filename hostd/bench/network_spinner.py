"""What forwards and never sleeps: it is stopped while it isn't measured."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


class Spinner:
    """A process `pid` that uses its processor all the time."""

    pid: int

    def pause(self) -> None:
        """Stop it."""
        os.kill(self.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have it run meanwhile."""
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()
