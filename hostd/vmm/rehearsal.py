"""Run a guest of one instruction in the warm parent, before any real one is forked.

What Python builds at the first use of anything (cffi's types, caches, buffers) would otherwise be built again by every
guest process, in memory of its own; after a rehearsal they all share it. Python also rewrites code that has run some
ten times into what suits what it met (PEP 659), and then leaves it mostly alone; so one rehearsal isn't enough.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

from hostd.boot._abi import lib
from hostd.vmm.process import GuestProcess

NAME = "rehearsal"
TIMES = 14
"""8 until code is rewritten, 4 more until what is found out about it is used; each takes 2 ms"""
REPORT = b"\xc7\x04\x25" + struct.pack("<II", lib.GUEST_CALL_PAGE, lib.GUEST_CALL_REPORT)
EXIT = b"\xc7\x04\x25" + struct.pack("<II", lib.GUEST_CALL_PAGE, lib.GUEST_CALL_EXIT)
CALL = b"\xef"  # out %eax, %dx
# mov $port, %edx; then twice: movl $number, the call page; out. The report is refused, for it has no name.
PROGRAM = b"\xba" + struct.pack("<I", lib.GUEST_PORT_CALL) + REPORT + CALL + EXIT + CALL + b"\xeb\xfe"


def rehearse(times: int = TIMES) -> None:
    """Run the guest `times` times. Where there is no KVM the real guest will say so better: errors are its result."""
    folder = tempfile.mkdtemp(prefix="hostd-")
    place = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        Path(folder, "guests").mkdir()
        for _ in range(times):
            _once(f"/proc/self/fd/{place}")  # However long $TMPDIR is: a Unix socket's path has at most 107 bytes.
    finally:
        os.close(place)
        shutil.rmtree(folder, ignore_errors=True)


def _once(folder: str) -> None:
    image = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.write(image, PROGRAM.ljust(4096, b"\xf4"))
    log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    process = GuestProcess(_spec(folder), [log, image])
    process.listen()
    # A supervisor that goes when it has the result; being in the foreground, the process ends with it.
    link = socket.socket(socket.AF_UNIX)
    link.connect(process.path)
    process.on_result = link.close
    process.main()
    process.close()
    for descriptor in (image, log):
        os.close(descriptor)


def _spec(folder: str) -> dict[str, Any]:
    start = lib.GUEST_IMAGE
    segment = {"gpa": start, "file_offset": 0, "file_size": 4096, "memory_size": 4096, "flags": 5}
    return {
        "name": NAME,
        "cluster": NAME,
        "dir": folder,
        "lifeline": True,
        "memory": 2 << 20,
        "args": [],
        "env": {},
        "cpu": None,
        "kind": "unikernel",
        "seed": bytes(32),
        "image": {"path": NAME, "segments": [segment], "entry": start},
        "options": {"lock": False, "prefault": False, "mergeable": False, "thp": None, "hugetlb": False},
        "log_limit": 1 << 20,
        "regions": [],
        "channels": [],
        "slots": [],
        "framebuffer": None,
        "bells": 0,
    }
