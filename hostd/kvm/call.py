"""ioctls on KVM's descriptors, failing with their names."""

from __future__ import annotations

from typing import Any

from hostd.kvm._kvm import ffi, lib
from hostd.kvm.errors import KvmError


def call(fd: int, name: str, argument: int = 0, about: dict[str, int | str] | None = None) -> int:
    """Do the ioctl called `name` with an integer; return its result.

    Raises KvmError with the arguments `about` (by default the integer itself).
    """
    result = lib.kvm_call(fd, getattr(lib, name), argument)
    if result < 0:
        raise KvmError(name, -result, about if about is not None else {"argument": argument})
    return result


def call_with(fd: int, name: str, pointer: Any, about: dict[str, int | str] | None = None) -> int:
    """Do the ioctl called `name` with a pointer to a structure; return its result. Raises KvmError."""
    result = lib.kvm_call_pointer(fd, getattr(lib, name), pointer)
    if result < 0:
        raise KvmError(name, -result, about)
    return result


__all__ = ["call", "call_with", "ffi", "lib"]
