"""A file that everyone who maps it shares."""

from __future__ import annotations

from hostd.memory.backings.base import FileBacking


class SharedFile(FileBacking):
    """A file, or POSIX shared memory, mapped MAP_SHARED: what the guest writes is in the file.

    The row may end in the file's last page, which is zero behind the file's end. A file that is made
    shorter while it is mapped takes its pages away: the guest's access ends its vCPU with an error, the
    host's own with SIGBUS.
    """

    kind = "file"
    shared = True
