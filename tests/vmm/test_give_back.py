"""Memory that a unikernel gives back to the host. Real VMs."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostd.kvm import KvmError
from hostd.memory import smaps

MIB = 1 << 20
RESERVED = Path("/proc/sys/vm/nr_hugepages")
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
GIVES = """
int main(void) {
    enum { SIZE = 4 << 20 };
    uint8_t *memory = guest_alloc(SIZE, 4096);
    uint32_t bell = 0;
    for (size_t i = 0; i < SIZE; i++)
        memory[i] = (uint8_t)(i * 7 + 1);
    report("filled", 1);
    guest_wait(&bell, 1, GUEST_NO_LIMIT);
    /* From the middle of one page to the middle of another: only whole pages go. */
    report("result", guest_give_back(memory + 100, SIZE / 2));
    report("given", 1);
    guest_wait(&bell, 1, GUEST_NO_LIMIT);
    size_t zeros = 0, kept = 0;
    for (size_t i = 0; i < SIZE; i++) {
        if (i >= 4096 && i < SIZE / 2)
            zeros += memory[i] == 0;
        else
            kept += memory[i] == (uint8_t)(i * 7 + 1);
    }
    report("zeros", zeros);
    report("kept", kept);
    report("nothing", guest_give_back(memory + 1, 4000));
    memory[8192] = 5; /* It is there again when it is touched. */
    return memory[8192];
}
"""


def held(guest) -> int:
    row = next(row for row in guest.table if row.name == "ram")
    return smaps.usage("self", [(row.hva, row.size)])[0].resident


@pytest.mark.parametrize("thp", [None, False])
def test_its_pages_are_the_hosts_again(run, thp):
    seen: list[int] = []

    def beside(guest) -> None:
        for _ in range(2):
            while guest.counters["waits"] <= len(seen):
                pass
            seen.append(held(guest))
            os.eventfd_write(guest.bells[0], 1)

    options = {"lock": False, "prefault": False, "mergeable": False, "thp": thp, "hugetlb": False}
    ended = run(GIVES, bells=1, memory=8 * MIB, options=options, beside=beside)
    assert ended.result["code"] == 5
    assert ended.reports["result"] == ended.reports["nothing"] == 0
    assert (ended.reports["zeros"], ended.reports["kept"]) == (2 * MIB - 4096, 2 * MIB + 4096)
    assert seen[0] - seen[1] == 2 * MIB - 4096
    assert ended.guest.counters["given_back"] == 2 * MIB - 4096


ASKS = """
static int give(uint64_t address, uint64_t size) {
    volatile struct guest_call *page = (void *)GUEST_CALL_PAGE;
    page->args[0] = address;
    page->args[1] = size;
    page->number = GUEST_CALL_GIVE_BACK;
    __asm__ volatile("outl %%0, %%w1" : : "a"(GUEST_CALL_GIVE_BACK), "Nd"(GUEST_PORT_CALL) : "memory");
    return page->result;
}

int main(void) {
    uint64_t own = (uint64_t)guest_alloc(8192, 4096), region = guest_region("shared")->address;
    const uint64_t asked[][2] = {
        {own + 1, 4096}, {own, 4095}, {region, 4096}, {GUEST_IMAGE, 4096}, {1ull << 40, 4096}, {own, 1ull << 40},
        {own, -4096ull}, {-4096ull, 4096}, {-4096ull, 8192}, {0xa0000, 4096}, {0x9f000, 8192}, {0x50000000, 4096},
    };
    size_t refused = 0, count = sizeof asked / sizeof *asked;
    *(volatile uint32_t *)region = 77;
    for (size_t i = 0; i < count; i++)
        refused += give(asked[i][0], asked[i][1]) == GUEST_EINVAL;
    report("asked", count);
    report("refused", refused);
    report("nothing", give(own, 0));
    return *(volatile uint32_t *)region;
}
"""


def test_what_is_not_its_own_stays(run):
    region = os.memfd_create("shared")
    os.ftruncate(region, 8192)
    slot = {"name": "extra", "gpa": 0x5000_0000, "size": 4096, "backing": "file", "offset": 0, "access": "rw"}
    ended = run(
        ASKS.replace("%%", "%"),
        regions=[("shared", region, "rw")],
        slots=[slot | {"path": f"/proc/self/fd/{region}"}],
    )
    assert ended.result["code"] == 77
    assert ended.reports == {"asked": 12, "refused": 12, "nothing": 0}
    os.close(region)


def test_locked_memory_stays(run):
    options = {"lock": True, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False}
    source = "int main(void) { return guest_give_back(guest_alloc(8192, 4096), 8192) == GUEST_EINVAL; }"
    assert run(source, options=options).result["code"] == 1


HUGE = """
int main(void) {
    enum { SIZE = 6 << 20 };
    uint8_t *memory = guest_alloc(SIZE, 2 << 20);
    uint32_t bell = 0;
    memset(memory, 7, SIZE);
    guest_wait(&bell, 1, GUEST_NO_LIMIT);
    /* All but one page of it: the huge page that it lies in stays. */
    report("result", guest_give_back(memory + 4096, SIZE - 4096));
    guest_wait(&bell, 1, GUEST_NO_LIMIT);
    size_t zeros = 0, kept = 0;
    for (size_t i = 0; i < SIZE; i++) {
        zeros += memory[i] == 0;
        kept += memory[i] == 7;
    }
    report("zeros", zeros);
    report("kept", kept);
    return 0;
}
"""


@pytest.fixture
def pool() -> Iterator[None]:
    """Reserve 8 huge pages, and give them back; their number is one for the whole host."""
    with (Path(tempfile.gettempdir()) / f"hostd-tests-hugepages-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(RESERVED.read_text())
        try:
            RESERVED.write_text(str(before + 8))
        except OSError as error:
            pytest.skip(f"huge pages cannot be reserved: {error}")
        try:
            if int((POOL / "free_hugepages").read_text()) < 8:
                pytest.skip("the host could not reserve 8 huge pages")
            yield
        finally:
            RESERVED.write_text(str(before))


@pytest.mark.parametrize("taken", [False, True])
def test_reserved_huge_pages_go_whole_and_may_be_gone_for_good(run, pool: None, taken: bool) -> None:
    """What a guest gives back is in the host's pool; who touches it when that is empty has no memory."""
    free: list[int] = []

    def beside(guest) -> None:
        for number in range(2):
            while guest.counters["waits"] <= number:
                pass
            free.append(int((POOL / "free_hugepages").read_text()))
            if number and taken:
                RESERVED.write_text("0")  # As when another guest takes them.
            os.eventfd_write(guest.bells[0], 1)

    options = {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": True}
    if taken:
        with pytest.raises(KvmError, match="are huge pages that it gave back taken"):
            run(HUGE, bells=1, memory=16 * MIB, options=options, beside=beside)
        assert free[1] - free[0] == 2
        return
    ended = run(HUGE, bells=1, memory=16 * MIB, options=options, beside=beside)
    assert free[1] - free[0] == 2
    assert ended.reports == {"result": 0, "zeros": 4 * MIB, "kept": 2 * MIB}
    assert ended.guest.counters["given_back"] == 4 * MIB
