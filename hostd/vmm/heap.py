"""The interpreter's heap, shared by all guest processes like an image (heap.h)."""

from __future__ import annotations

import ctypes

from hostd.vmm import _calls
from hostd.vmm._calls import ffi, lib

# cffi gives up the interpreter's lock in every call; these must keep it.
_locked = ctypes.PyDLL(_calls.__file__)
_share, _fill = _locked.heap_share, _locked.heap_fill
_share.argtypes, _fill.argtypes, _fill.restype = [ctypes.c_void_p], [], None
_heap = ffi.new("struct heap *")
_address = int(ffi.cast("uintptr_t", _heap))
frozen = False


def freeze() -> None:
    """Move this process's memory into a file that children share. Must be the only thread's last preparation."""
    global frozen
    _fill()
    frozen = lib.heap_freeze(_heap) == 0


def share() -> int:
    """In a child that has come to rest: share the pages again that are as they were. Returns how many."""
    return int(_share(_address)) if frozen else 0
