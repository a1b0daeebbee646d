"""A guest made into a template: its memory in a file, everything else as plain values."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hostd.memory.frozen import write_rows

if TYPE_CHECKING:
    from hostd.vmm.process import GuestProcess


def freeze(process: GuestProcess, message: dict[str, Any]) -> dict[str, Any]:
    """Write the guest's memory to the new file `path`; return {"rows", "state"}. The guest stands still meanwhile.

    Raises ValueError and OSError.
    """
    guest = process.guest
    if guest is None or process.result is not None or process.stopping:
        raise ValueError("its guest does not run")
    if guest.debugger is not None:
        raise ValueError("a debugger is attached to it, whose breakpoints would be its clones'; let it detach first")
    file = os.open(message["path"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with guest.still():
            if process.stopping:
                raise ValueError("its guest has ended")
            state = guest.freeze(file)
            rows = write_rows(guest.table, file)
        os.fsync(file)
    finally:
        os.close(file)
    return {"rows": rows, "state": state}
