"""Memory: free, huge pages, what may be locked, shared memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from hostd.doctor.check import Check
from hostd.memory import commit, swap

HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SHM = "/dev/shm"
MIB = 1 << 20
LITTLE = 64 * MIB
CAP_IPC_LOCK = 14


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Look at how much memory guests can get."""
    values = {name: int(rest.split()[0]) << 10 for name, _, rest in _fields(meminfo)}
    free, total = values["MemAvailable"], values["MemTotal"]
    text = f"{free // MIB} MiB available of {total // MIB} MiB"
    if free < 4 * LITTLE:
        return Check("memory", "warn", text, "end other programs, or start few guests")
    return Check("memory", "ok", text)


def _fields(path: Path) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in path.read_text().splitlines() if ":" in line]


def check_swap(meminfo: Path = Path(swap.MEMINFO)) -> Check:
    """Look for swap, where `hostd pageout` and `ceiling` send memory that has no file."""
    host = swap.host_memory(str(meminfo))
    why = swap.no_room(host)
    if why is not None:
        what, _, hint = why.partition("; ")
        return Check("swap", "warn", f"{what}; only `hostd pageout` and `ceiling` need it", hint)
    return Check("swap", "ok", f"{host.swap_free // MIB} MiB free of {host.swap_total // MIB} MiB")


def check_overcommit(policy: Path = commit.POLICY) -> Check:
    """Look at whether guests may be promised more memory than there is."""
    if policy.read_text().strip() == commit.NEVER:
        hint = "`sysctl vm.overcommit_memory=0` as root, or guests whose RAM is in a file (`paged`)"
        return Check("overcommit", "warn", "vm.overcommit_memory is 2: each guest's whole memory is promised", hint)
    return Check("overcommit", "ok", "guests take memory as they touch it")


def check_huge_pages(folder: Path = HUGE_PAGES) -> Check:
    """Look for reserved 2 MiB pages, which `hugetlb` rows and regions take."""
    try:
        total = int((folder / "nr_hugepages").read_text())
        free = int((folder / "free_hugepages").read_text())
    except OSError:
        hint = "leave `hugetlb` out of cluster files"
        return Check("huge pages", "warn", "this kernel has no 2 MiB pages", hint)
    if total == 0:
        return Check(
            "huge pages",
            "warn",
            "none reserved; only `hugetlb` memory needs them",
            "for 128 of 2 MiB: `sysctl vm.nr_hugepages=128` as root",
        )
    return Check("huge pages", "ok", f"{free} of {total} reserved pages of 2 MiB are free")


def check_transparent(path: Path = TRANSPARENT) -> Check:
    """Look at whether a few touched bytes may turn into a 2 MiB page."""
    try:
        words = path.read_text()
    except OSError:
        return Check("transparent huge pages", "warn", "not in this kernel", "leave `thp` out of cluster files")
    mode = words.partition("[")[2].partition("]")[0]
    if mode == "always":
        return Check(
            "transparent huge pages",
            "warn",
            "always: a guest that touches one page may take 2 MiB",
            f"for small guests: `thp = false` in the cluster file, or `echo madvise > {path}` as root",
        )
    return Check("transparent huge pages", "ok", f"{mode}: only where a row asks for them (`thp = true`)")


def check_memlock() -> Check:
    """Look at how much memory `lock` may lock."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("memlock", "ok", "without limit")
    if has_capability(CAP_IPC_LOCK):
        return Check("memlock", "ok", f"RLIMIT_MEMLOCK is {soft} bytes, but this user may lock any amount")
    text = f"RLIMIT_MEMLOCK is {soft} bytes for each guest; only `lock = true` needs it"
    if soft < LITTLE:
        how = "`ulimit -l unlimited`, LimitMEMLOCK= in systemd, or memlock in /etc/security/limits.conf"
        return Check("memlock", "warn", text, f"raise it: {how}")
    return Check("memlock", "ok", text)


def has_capability(number: int) -> bool:
    """Tell whether this process has the capability `number` (capabilities(7))."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> number & 1)


def check_shared_memory(folder: str = SHM) -> Check:
    """Look at the space for regions."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        hint = f"mount a tmpfs there: `mount -t tmpfs tmpfs {folder}` as root"
        return Check("shared memory", "fail", f"{folder} cannot be used: {error.strerror}", hint)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    text = f"{free // MIB} MiB free of {total // MIB} MiB in {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        hint = f"`chmod 1777 {folder}` as root"
        return Check("shared memory", "fail", f"{folder} is not writable by this user", hint)
    if free < LITTLE:
        hint = f"remove what is not needed there, or `mount -o remount,size=50% {folder}` as root"
        return Check("shared memory", "warn", text, hint)
    return Check("shared memory", "ok", text)
