"""A pager that takes its time: pages of a guest's memory that are gone from this process until it brings them back.

Linux, Documentation/admin-guide/mm/userfaultfd.rst; the numbers are those of <linux/userfaultfd.h>.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import threading
import time

PAGE = 4096
SYS_USERFAULTFD = 323
API, REGISTER, COPY, ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC028AA03, 0xC020AA04
VERSION, MISSING, PAGEFAULT = 0xAA, 1, 0x12
MADV_DONTNEED = 4
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class SlowPager:
    """Serves faults in `size` bytes from `start`: at once with zeros, or after `delay` seconds with what was taken."""

    def __init__(self, start: int, size: int, delay: float) -> None:
        self._delay = delay
        self._pages: dict[int, bytes] = {}
        self.served: list[int] = []
        """addresses that it was asked for and had pages for"""
        self._fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._fd, API, bytearray(struct.pack("<QQQ", VERSION, 0, 0)))
        fcntl.ioctl(self._fd, REGISTER, bytearray(struct.pack("<QQQQ", start, size, MISSING, 0)))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def take(self, address: int) -> None:
        """Take the page at `address` away until somebody touches it."""
        self._pages[address] = ctypes.string_at(address, PAGE)
        if libc.madvise(address, PAGE, MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise")

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._fd)  # Who waits yet goes on, with a page of zeros.

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while not self._ended.is_set():
            if not poll.poll(100):
                continue
            try:
                message = os.read(self._fd, 32)
            except BlockingIOError:
                continue
            event, _flags, address = struct.unpack_from("<B7xQQ", message)
            if event == PAGEFAULT:
                self._bring(address & ~(PAGE - 1))

    def _bring(self, address: int) -> None:
        page = self._pages.pop(address, None)
        if page is None:
            self._ioctl(ZEROPAGE, struct.pack("<QQQq", address, PAGE, 0, 0))
            return
        time.sleep(self._delay)
        self.served.append(address)
        source = ctypes.create_string_buffer(page, PAGE)
        self._ioctl(COPY, struct.pack("<QQQQq", address, ctypes.addressof(source), PAGE, 0, 0))

    def _ioctl(self, number: int, argument: bytes) -> None:
        with contextlib.suppress(FileExistsError):  # Two asked for the same page.
            fcntl.ioctl(self._fd, number, bytearray(argument))
