"""Holding vCPUs: threads that stand in for them, as what is held is the threads."""

from __future__ import annotations

import threading
import time

import pytest

from hostd.vmm.pause import Pause

LIMIT = 10.0


class Fake:
    """A vCPU that "runs" until it is stopped."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.turns = 0

    def stop(self) -> None:
        self.stopped.set()

    def run(self) -> None:
        self.stopped.wait(0.01)
        self.stopped.clear()
        self.turns += 1


@pytest.mark.parametrize("count", [1, 3])
def test_nobody_runs_inside(count: int) -> None:
    vcpus = [Fake() for _ in range(count)]
    pause, done = Pause(vcpus), threading.Event()  # type: ignore[arg-type]

    def loop(index: int, vcpu: Fake) -> None:
        while not done.is_set():
            vcpu.run()
            pause.rest(index)
        pause.leave(index)

    threads = [threading.Thread(target=loop, args=item) for item in enumerate(vcpus)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        with pause.paused():
            before = [vcpu.turns for vcpu in vcpus]
            time.sleep(0.05)
            assert [vcpu.turns for vcpu in vcpus] == before
        deadline = time.monotonic() + LIMIT
        while any(vcpu.turns == turns for vcpu, turns in zip(vcpus, before, strict=True)):
            assert time.monotonic() < deadline, "a vCPU did not go on"
            time.sleep(0.001)
    done.set()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    with pause.paused():  # All have left: there is nobody to wait for.
        pass
