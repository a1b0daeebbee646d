"""Code that several guests patched alike is shared again; what they patched differently stays theirs."""

import contextlib
import os
from pathlib import Path

import pytest
from linux_images import PAGE, TEXT, Load, Vmlinux, text

from hostd.boot.linux import patched
from hostd.boot.linux.kernel import open_kernel
from hostd.boot.linux.layout import lay_out
from hostd.boot.linux.patched import own_code, share_code
from hostd.boot.linux.rows import map_guest
from hostd.boot.unikernel import RamOptions
from hostd.memory import SlotTable
from hostd.memory.smaps import usage

MIB = 1 << 20


@pytest.fixture
def kernel(tmp_path):
    content = text().ljust(10 * PAGE, b"\0")  # Whole pages: nothing to clear, so nothing private from the start.
    vmlinux = Vmlinux(loads=[Load(TEXT, 5, content, len(content))])
    (tmp_path / "vmlinux").write_bytes(vmlinux.build())
    return open_kernel(tmp_path / "vmlinux", tmp_path / "cache")


@contextlib.contextmanager
def guest(kernel):
    with SlotTable(None) as table:
        fd = os.open(kernel.path, os.O_RDONLY)
        map_guest(table, kernel, fd, None, 0, b"", lay_out(64 * MIB, kernel, 0, 0, 40), RamOptions())
        os.close(fd)
        yield table


def private(table) -> int:
    """Return how many bytes of the text row are anonymous memory of this process."""
    row = next(row for row in table if row.name == "kernel.text")
    found = usage("self", [(row.hva, row.size)])[0]
    with open("/proc/self/smaps") as file:
        assert found.resident
        own, inside = 0, False
        for line in file:
            if "-" in line.split(":")[0].split(" ")[0] and " " in line.split(":")[0]:
                start = int(line.partition("-")[0], 16)
                inside = row.hva <= start < row.hva + row.size
            elif inside and line.startswith("Anonymous:"):
                own += int(line.split()[1]) * 1024
        return own


def paused_into(log, action=lambda: None):
    @contextlib.contextmanager
    def paused():
        log.append("stopped")
        action()
        yield
        log.append("on")

    return paused


def patch(table, page, what=b"\x90\x90"):
    table.write(TEXT + page * PAGE + 100, what)


def test_guests_that_patched_alike_share_again(kernel, tmp_path):
    log = []
    with guest(kernel) as first, guest(kernel) as second:
        for table in (first, second):
            for page in (0, 1, 3):
                patch(table, page)
        before = [table.read(TEXT, 10 * PAGE) for table in (first, second)]
        assert private(second) == 3 * PAGE
        for table in (first, second):
            assert share_code(table, kernel, tmp_path / "cache", paused_into(log)).describe() == {
                "pages": 5,
                "changed": 3,
                "shared": 3,
            }
            assert private(table) == 0
        assert [table.read(TEXT, 10 * PAGE) for table in (first, second)] == before
        assert len(list((tmp_path / "cache").glob("*.code"))) == 1
        # The next change is the guest's own again, and nobody else's.
        patch(second, 1, b"later")
        assert private(second) == PAGE
        assert first.read(TEXT, 10 * PAGE) == before[0]
        assert share_code(second, kernel, tmp_path / "cache", paused_into(log)).changed == 1
        assert second.read(TEXT + PAGE + 100, 5) == b"later"
    assert log == ["stopped", "on"] * 3


def test_what_differs_stays_the_guests_own(kernel, tmp_path):
    with guest(kernel) as first, guest(kernel) as second:
        for page in range(5):
            patch(first, page)
            patch(second, page, b"\x90\x90" if page != 2 else b"\xcc\xcc")
        share_code(first, kernel, tmp_path / "cache", paused_into([]))
        with pytest.MonkeyPatch.context() as change:
            change.setattr(patched, "GOOD", 0.5)
            found = share_code(second, kernel, tmp_path / "cache", paused_into([]))
        assert (found.changed, found.shared) == (5, 4)
        assert private(second) == PAGE
        assert second.read(TEXT + 2 * PAGE + 100, 2) == b"\xcc\xcc"


def test_a_guest_that_patches_otherwise_makes_a_variant_up_to_a_limit(kernel, tmp_path):
    for number in range(patched.MAX_VARIANTS + 2):
        with guest(kernel) as table:
            patch(table, 0, bytes([0x80 + number]))
            found = share_code(table, kernel, tmp_path / "cache", paused_into([]))
            assert found.shared == (1 if number < patched.MAX_VARIANTS else 0)
            assert table.read(TEXT + 100, 1) == bytes([0x80 + number])
    assert len(list((tmp_path / "cache").glob("*.code"))) == patched.MAX_VARIANTS


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 5 * PAGE])
def test_a_hostile_file_is_never_taken(kernel, tmp_path, damage):
    with guest(kernel) as table:
        patch(table, 0)
        share_code(table, kernel, tmp_path / "cache", paused_into([]))
    made = next((tmp_path / "cache").glob("*.code"))
    made.chmod(0o644)
    made.write_bytes(damage)
    with guest(kernel) as table:
        patch(table, 0)
        before = table.read(TEXT, 10 * PAGE)
        assert share_code(table, kernel, tmp_path / "cache", paused_into([])).shared == 1
        assert table.read(TEXT, 10 * PAGE) == before
    assert len(list((tmp_path / "cache").glob("*.code"))) == 2


def test_code_that_was_copied_in_advance_is_given_back(kernel, tmp_path):
    with guest(kernel) as table:
        before = table.read(TEXT, 10 * PAGE)
        own_code(table, kernel)
        assert private(table) == 5 * PAGE
        assert table.read(TEXT, 10 * PAGE) == before
        patch(table, 3)
        found = share_code(table, kernel, tmp_path / "cache", paused_into([]))
        assert (found.pages, found.changed, found.shared) == (5, 5, 5)
        assert private(table) == 0
        assert table.read(TEXT + 3 * PAGE + 100, 2) == b"\x90\x90"


def test_files_of_another_size_are_no_help_and_no_harm(kernel, tmp_path):
    with guest(kernel) as table:
        patch(table, 0)
        share_code(table, kernel, tmp_path / "cache", paused_into([]))
    made = next((tmp_path / "cache").glob("*.0.code"))
    made.unlink()
    for number in range(patched.MAX_VARIANTS):
        (made.parent / made.name.replace(".0.", f".{number}.")).write_bytes(b"short")
    with guest(kernel) as table:
        patch(table, 0)
        found = share_code(table, kernel, tmp_path / "cache", paused_into([]))
        assert (found.changed, found.shared) == (1, 0)


def test_what_changes_until_the_guest_stands_still_is_kept(kernel, tmp_path):
    with guest(kernel) as table:
        patch(table, 0)
        late = paused_into([], lambda: patch(table, 4, b"late"))
        assert share_code(table, kernel, tmp_path / "cache", late).shared == 1
        assert table.read(TEXT + 4 * PAGE + 100, 4) == b"late"


def test_data_goes_into_no_file(kernel, tmp_path):
    """The gap behind the code, which Linux gives to its programs, and the constants."""
    secret = b"a program's secret"
    with guest(kernel) as table:
        patch(table, 0)
        table.write(TEXT + 5 * PAGE, secret)
        table.write(TEXT + 8 * PAGE, secret)
        share_code(table, kernel, tmp_path / "cache", paused_into([]))
    assert not any(secret in path.read_bytes() for path in (tmp_path / "cache").iterdir())


def test_a_kernel_that_does_not_say_where_its_code_is_is_left_alone(tmp_path):
    (tmp_path / "vmlinux").write_bytes(Vmlinux(sections=False).build())
    kernel = open_kernel(tmp_path / "vmlinux", tmp_path / "cache")
    with guest(kernel) as table:
        patch(table, 0)
        own_code(table, kernel)
        assert share_code(table, kernel, Path("/nowhere"), paused_into([])).pages == 0
