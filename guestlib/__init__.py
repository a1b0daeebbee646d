"""What runs inside a guest: the C runtime and headers of unikernel guests, the programs and the Python of Linux guests.

In a Linux guest:

    guest = guestlib.attach()
    with guest.receiver("words") as words:
        print(words.recv())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guestlib.build import BuildError, compile_program, toolchain
    from guestlib.linux.attach import Guest, attach

__all__ = ["BuildError", "Guest", "attach", "compile_program", "toolchain"]

# Imported when they are first asked for: a program in a guest needs no compiler call.
_WHERE = {
    "BuildError": "build",
    "compile_program": "build",
    "toolchain": "build",
    "Guest": "linux.attach",
    "attach": "linux.attach",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'guestlib' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"guestlib.{_WHERE[name]}"), name)
