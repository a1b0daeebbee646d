"""Memory of this guest in a file on a disk, so that its pages can leave memory on a host without swap."""

from __future__ import annotations

import errno
import os
import stat

from hostd.memory._map import lib
from hostd.memory.backings.shared import Shared
from hostd.memory.errors import BackingError, reason

IN_MEMORY = {0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x958458F6: "hugetlbfs"}
"""file systems whose files are memory themselves, by f_type (statfs(2))"""


class PagedFile:
    """A file of `size` bytes in `folder` that has no name, so it is gone with its last user however that ends.

    It takes the disk's space where it is written to; with `reserve` all of it now. Raises BackingError.
    """

    def __init__(self, folder: str, size: int, *, reserve: bool = False) -> None:
        self.folder, self.descriptor = folder, -1
        try:
            check_folder(folder)
            self.descriptor = _nameless(folder)
            os.ftruncate(self.descriptor, size)
            if reserve:
                os.posix_fallocate(self.descriptor, 0, size)
        except BackingError:
            raise
        except OSError as error:
            code = error.errno or 0
            raise BackingError(code, f"{folder}: no file of {size} bytes can be made there: {reason(code)}") from None

    def at(self, offset: int) -> Paged:
        """Return the backing of a row whose first byte is the file's at `offset`."""
        return Paged(self, offset)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Paged(Shared):
    """A part of a `PagedFile`, mapped MAP_SHARED: the kernel writes its pages to the file and drops them at need."""

    kind = "paged"

    def __init__(self, file: PagedFile, offset: int) -> None:
        super().__init__(file.descriptor, offset)
        self.paged_file = file

    @property
    def source(self) -> str:
        return self.paged_file.folder


def check_folder(folder: str) -> None:
    """Raise BackingError unless `folder` is one on a disk in which this process can make files."""
    try:
        found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BackingError(error.errno or 0, f"{folder}: {reason(error.errno or 0)}; name a folder") from None
    try:
        kind = IN_MEMORY.get(lib.map_file_system(found))
    finally:
        os.close(found)
    if kind is not None:
        raise BackingError(errno.EINVAL, f"{folder}: is on {kind}, which is memory itself; name a folder on a disk")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BackingError(errno.EACCES, f"{folder}: this user cannot write there; name another folder")


def _nameless(folder: str) -> int:
    mode = stat.S_IRUSR | stat.S_IWUSR
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    # A file system without nameless files.
    path = f"{folder}/.hostd-{os.getpid()}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
    os.unlink(path)
    return descriptor
