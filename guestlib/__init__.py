"""What runs inside a guest: the C runtime and headers of unikernel guests, and the compiler call that builds one."""

from guestlib.build import BuildError, compile_program, toolchain

__all__ = ["BuildError", "compile_program", "toolchain"]
