"""The doctor's findings, on this host and on ones that are made up."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from hostd import doctor
from hostd.doctor import Check, KvmKind, kvm, kvm_kind, memory, probe, run_checks, tools
from hostd.kvm import Exit, InternalError, Interrupted, Io, Shutdown, System

DONE = Io(port=0x10, is_write=True, size=1, count=1, data=b"\0")


def test_every_check_says_one_line() -> None:
    checks = run_checks()
    assert [check.name for check in checks][:2] == ["kvm", "kvm features"]
    assert len({check.name for check in checks}) == len(checks) == len(doctor.CHECKS)
    for check in checks:
        assert check.status in ("ok", "warn", "fail")
        assert check.text
        assert "\n" not in check.text + check.hint
        assert bool(check.hint) == (check.status != "ok"), check
        assert check.describe() == {
            "name": check.name,
            "status": check.status,
            "text": check.text,
            "hint": check.hint,
        }


def test_this_hosts_kvm_is_tried(system: System) -> None:
    """Whatever it is, unikernels run: the tests of this project do nothing else."""
    assert system.fd >= 0
    assert kvm_kind() in (KvmKind.UNIKERNEL, KvmKind.FULL)
    assert kvm.check_capabilities().status == "ok"


def test_no_kvm(tmp_path: Path) -> None:
    device = str(tmp_path / "kvm")
    assert kvm_kind(device) is KvmKind.NONE
    check = kvm.check_kvm(device)
    assert check.status == "fail"
    assert "does not exist" in check.text
    assert "load kvm_intel or kvm_amd" in check.hint
    assert kvm.check_capabilities(device).status == "fail"


def test_a_device_that_is_not_kvm() -> None:
    assert kvm_kind("/dev/null") is KvmKind.NONE


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert kvm_kind() is KvmKind.FORBIDDEN
    check = kvm.check_kvm()
    assert check.status == "fail"
    assert check.hint.startswith("join its group")


@pytest.mark.parametrize(
    ("ring3", "ring0", "kind", "status"),
    [
        (DONE, DONE, KvmKind.FULL, "ok"),
        (DONE, InternalError(1, (), None), KvmKind.UNIKERNEL, "warn"),
        (DONE, Shutdown(), KvmKind.UNIKERNEL, "warn"),
        (Shutdown(), DONE, KvmKind.BROKEN, "fail"),
        (Interrupted(), DONE, KvmKind.BROKEN, "fail"),
    ],
)
def test_what_the_probe_makes_of_exits(
    monkeypatch: pytest.MonkeyPatch, system: System, ring3: Exit, ring0: Exit, kind: KvmKind, status: str
) -> None:
    assert system.fd >= 0
    monkeypatch.setattr(probe, "try_code", lambda _system, _code, ring: ring3 if ring == 3 else ring0)
    assert kvm_kind() is kind
    assert kvm.check_kvm().status == status


def test_huge_pages(tmp_path: Path) -> None:
    assert memory.check_huge_pages(tmp_path / "none").status == "warn"
    (tmp_path / "nr_hugepages").write_text("0\n")
    (tmp_path / "free_hugepages").write_text("0\n")
    assert "sysctl vm.nr_hugepages" in memory.check_huge_pages(tmp_path).hint
    (tmp_path / "nr_hugepages").write_text("8\n")
    (tmp_path / "free_hugepages").write_text("3\n")
    assert memory.check_huge_pages(tmp_path) == Check("huge pages", "ok", "3 of 8 reserved pages of 2 MiB are free")


@pytest.mark.parametrize(
    ("words", "status"),
    [("[always] madvise never", "warn"), ("always [madvise] never", "ok"), ("always madvise [never]", "ok")],
)
def test_transparent_huge_pages(tmp_path: Path, words: str, status: str) -> None:
    path = tmp_path / "enabled"
    path.write_text(words + "\n")
    assert memory.check_transparent(path).status == status
    assert memory.check_transparent(tmp_path / "none").status == "warn"


def test_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  1000000 kB\nMemAvailable:   100000 kB\nHugePages_Total:  0\n")
    assert memory.check_memory(path).status == "warn"
    path.write_text("MemTotal:  1000000 kB\nMemAvailable:   900000 kB\n")
    assert memory.check_memory(path).status == "ok"


def test_swap(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  1000000 kB\nSwapTotal:  0 kB\nSwapFree:  0 kB\n")
    check = memory.check_swap(path)
    assert (check.status, check.text[:21]) == ("warn", "this host has no swap")
    assert "swapon" in check.hint
    path.write_text("SwapTotal:  4096 kB\nSwapFree:  2048 kB\n")
    assert memory.check_swap(path).text == "2 MiB free of 4 MiB"


def test_overcommit(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    path.write_text("2\n")
    assert memory.check_overcommit(path).status == "warn"
    path.write_text("0\n")
    assert memory.check_overcommit(path).status == "ok"


def test_shared_memory(tmp_path: Path) -> None:
    assert memory.check_shared_memory(str(tmp_path / "none")).status == "fail"
    assert memory.check_shared_memory(str(tmp_path)).text.endswith(f"in {tmp_path}")


Limits = Callable[[int], tuple[int, int]]


def limits(soft: int, hard: int) -> Limits:
    return lambda _kind: (soft, hard)


def test_memlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "has_capability", lambda _number: False)
    monkeypatch.setattr(resource, "getrlimit", limits(65536, 65536))
    check = memory.check_memlock()
    assert check.status == "warn"
    assert "65536 bytes" in check.text
    assert "ulimit -l" in check.hint
    monkeypatch.setattr(resource, "getrlimit", limits(resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert memory.check_memlock().status == "ok"
    monkeypatch.setattr(memory, "has_capability", lambda _number: True)
    monkeypatch.setattr(resource, "getrlimit", limits(65536, 65536))
    assert memory.check_memlock().status == "ok"


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", limits(256, 256))
    assert "as root" in tools.check_open_files().hint
    monkeypatch.setattr(resource, "getrlimit", limits(256, 8192))
    assert "in the shell" in tools.check_open_files().hint
    monkeypatch.setattr(resource, "getrlimit", limits(20000, 20000))
    assert tools.check_open_files().status == "ok"


def test_compiler(tmp_path: Path) -> None:
    assert "apt-get install gcc" in tools.check_compiler("no-such-compiler").hint
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert tools.check_compiler(str(broken)).status == "warn"


def test_processor(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: Old One\nflags\t\t: fpu sse2\n\n")
    assert tools.check_processor(path).text == "Old One, no AVX2"
