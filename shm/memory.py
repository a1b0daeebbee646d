"""The memory of a region: POSIX shared memory, huge pages, file or memfd, reserved so that it can't run out later."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from shm._shm import lib
from shm.errors import ShmError
from shm.naming import posix_name

HUGE_PAGE = 2 << 20
MFD_HUGE_2MB = 21 << 26
Backing = str | os.PathLike[str]


def page_size(backing: Backing) -> int:
    """Return the size of the pages that `backing` gives out, in bytes."""
    return HUGE_PAGE if backing == "hugetlb" else int(lib.SHM_PAGE)


def make(name: str, backing: Backing, size: int, reserve: int) -> int:
    """Make `size` bytes of zeros for region `name`, the first `reserve` of them reserved; return their descriptor.

    The descriptor holds a lock, by which a living region is told from what a killed process left. Raises ShmError.
    """
    if backing == "shm":
        fd = _posix(name)
    elif backing == "hugetlb":
        fd = _huge(name)
    elif backing == "memfd":
        fd = os.memfd_create(name.replace("/", "."), os.MFD_CLOEXEC)
    elif isinstance(backing, os.PathLike):
        fd = _file(name, backing)
    else:
        raise ShmError(f"region {name}: backing {backing!r} is not 'shm', 'hugetlb', 'memfd' or a path")
    if backing == "hugetlb":
        reserve = size
    try:
        _check_room(name, backing, fd, size)
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, reserve)
    except (OSError, ShmError) as error:
        remove(name, backing)
        os.close(fd)
        if isinstance(error, ShmError):
            raise
        raise ShmError(f"region {name}: {reserve} bytes of {_place(backing)}: {_reason(error, backing)}") from None
    return fd


def remove(name: str, backing: Backing) -> None:
    """Remove the region's name; who has it mapped keeps it. A region's file stays."""
    if backing == "shm":
        import posix_ipc

        with contextlib.suppress(posix_ipc.Error):
            posix_ipc.unlink_shared_memory(posix_name(name))


def take(name: str, fd: int) -> int:
    """Return a descriptor of its own for a region's memory, held as `make` does, and close `fd`. Raises ShmError."""
    try:
        # What a guest had may be read-only, and shares its lock with the guest.
        taken = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ShmError(f"region {name}: cannot be taken over: {error.strerror}") from None
    os.close(fd)
    _lock(taken)
    return taken


def _place(backing: Backing) -> str:
    return {"shm": "/dev/shm", "hugetlb": "huge pages", "memfd": "memory"}.get(str(backing), str(backing))


def _reason(error: OSError, backing: Backing) -> str:
    if backing == "hugetlb" and error.errno in (errno.ENOMEM, errno.ENOSPC):
        return "too few 2 MiB pages are reserved; raise /proc/sys/vm/nr_hugepages"
    if error.errno == errno.ENOSPC:
        return "it is full; remove what is there or make it larger"
    return str(error.strerror)


def _check_room(name: str, backing: Backing, fd: int, size: int) -> None:
    """The data area takes its memory later: then a full file system would be a SIGBUS, so it is met here."""
    if backing in ("hugetlb", "memfd"):
        return
    room = os.fstatvfs(fd)
    free = room.f_bavail * room.f_frsize
    if size > free:
        place = _place(backing)
        raise ShmError(
            f"region {name}: {size} bytes don't fit in {place}, which has {free} free; "
            "make the region smaller or remove what is there"
        )


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _posix(name: str) -> int:
    import posix_ipc

    for _ in range(100):
        try:
            memory = posix_ipc.SharedMemory(posix_name(name), posix_ipc.O_CREX, mode=0o600)
        except posix_ipc.ExistentialError:
            _remove_dead(name)
            continue
        except (posix_ipc.Error, OSError) as error:
            raise ShmError(f"region {name}: /dev/shm: {error}") from None
        os.set_inheritable(memory.fd, False)
        if _lock(memory.fd):
            return int(memory.fd)
        os.close(memory.fd)  # Somebody took it for a dead one, just now, and removes it.
    raise ShmError(f"region {name}: others make and remove it all the time")


def _remove_dead(name: str) -> None:
    """Remove a region that no living process owns. Raises ShmError if one does."""
    import posix_ipc

    try:
        old = posix_ipc.SharedMemory(posix_name(name))
    except posix_ipc.ExistentialError:
        return
    except (posix_ipc.Error, OSError) as error:
        raise ShmError(f"region {name}: /dev/shm{posix_name(name)}: {error}") from None
    try:
        if not _lock(old.fd):
            raise ShmError(f"region {name} exists already; close it or use another name")
        # Only the one that was looked at: not one that somebody else made in its place meanwhile.
        path = f"/dev/shm{posix_name(name)}"
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(old.fd), Path(path).stat()):
                os.unlink(path)
    finally:
        os.close(old.fd)


def _huge(name: str) -> int:
    try:
        return os.memfd_create(name.replace("/", "."), os.MFD_CLOEXEC | os.MFD_HUGETLB | MFD_HUGE_2MB)
    except OSError as error:
        raise ShmError(f"region {name}: huge pages: {error.strerror}") from None


def _file(name: str, path: os.PathLike[str]) -> int:
    where = f"region {name}: {os.fspath(path)}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ShmError(f"{where}: {error.strerror}") from None
    magic = os.pread(fd, 8, 0)
    if not _lock(fd):
        os.close(fd)
        raise ShmError(f"{where} belongs to another region that is in use; name another file")
    if magic and magic != lib.SHM_MAGIC.to_bytes(8, "little"):
        os.close(fd)
        raise ShmError(f"{where} exists and is no region's; remove it or name another file")
    os.ftruncate(fd, 0)
    return fd
