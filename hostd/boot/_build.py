"""cffi build script of `hostd.boot._abi`: the guest's contract, read from its one header."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

INCLUDE = Path(__file__).resolve().parent.parent.parent / "guestlib/include"


def declarations(header: Path) -> str:
    """Return what cffi's parser can take of a plain C header: no includes, no guard, no bracketed constants."""
    guard = header.name.upper().replace(".", "_")
    skip = ("#include", "#ifndef", "#endif", f"#define {guard}")
    lines = header.read_text().splitlines(keepends=True)
    return "".join(re.sub(r"\((-\d+)\)", r"\1", line) for line in lines if not line.startswith(skip))


ffibuilder = FFI()
ffibuilder.cdef(declarations(INCLUDE / "guest_abi.h"))
ffibuilder.set_source(
    "hostd.boot._abi",
    '#include "guest_abi.h"\n',
    include_dirs=[str(INCLUDE)],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-Werror"],
)
