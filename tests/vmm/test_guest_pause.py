"""A unikernel that is made to stand still. Real VMs."""

from __future__ import annotations

import os
import time

from hostd.vmm.guest import Guest

WAIT = r"""
int main(void) {
    uint32_t bell = 0;
    uint64_t start = guest_now_ns();
    uint64_t rang = guest_wait(&bell, 1, %s);
    report("milliseconds", (int64_t)((guest_now_ns() - start) / 1000000));
    report("rang", (int64_t)rang);
    return 0;
}
"""


def test_a_wait_is_as_long_as_it_was_to_be(run):
    pauses = 0

    def beside(guest: Guest) -> None:
        nonlocal pauses
        for _ in range(10):
            time.sleep(0.02)
            with guest.pause.paused():
                pauses += 1

    ended = run(WAIT % "600000000ull", bells=1, beside=beside)
    assert pauses == 10
    assert ended.reports["milliseconds"] >= 600
    assert ended.reports["rang"] == 0
    assert ended.guest.counters["waits"] == 1


def test_a_bell_that_rings_meanwhile_is_heard_afterwards(run):
    def beside(guest: Guest) -> None:
        time.sleep(0.05)
        with guest.pause.paused():
            os.eventfd_write(guest.bells[0], 1)
            time.sleep(0.1)

    ended = run(WAIT % "GUEST_NO_LIMIT", bells=1, beside=beside)
    assert ended.reports["rang"] == 1
    assert ended.reports["milliseconds"] >= 100


def test_a_guest_that_spins_stands_still(run):
    seen: list[int] = []

    def beside(guest: Guest) -> None:
        deadline = time.monotonic() + 10
        while not (row := guest.table.read(0x4000_0000, 8)).strip(b"\0"):
            assert time.monotonic() < deadline
        with guest.pause.paused():
            row = guest.table.read(0x4000_0000, 8)
            time.sleep(0.05)
            seen.append(int.from_bytes(row, "little"))
            seen.append(int.from_bytes(guest.table.read(0x4000_0000, 8), "little"))
        guest.table.write(0x4000_0008, b"\1")

    ended = run(
        """
        int main(void) {
            volatile uint64_t *count = (void *)0x40000000;
            while (!count[1])
                count[0]++;
            return 7;
        }
        """,
        slots=[
            {
                "name": "counter",
                "gpa": 0x4000_0000,
                "size": 4096,
                "backing": "anonymous",
                "path": None,
                "offset": 0,
                "access": "rw",
            }
        ],
        beside=beside,
    )
    assert ended.result["code"] == 7
    assert seen[0] == seen[1] > 0
