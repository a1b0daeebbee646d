"""cffi build script of `hostd.bench._hardware`."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

ffibuilder = FFI()
ffibuilder.cdef(
    """
    void bounce_answer(uint64_t *line, uint64_t rounds);
    void bounce_measure(uint64_t *line, uint64_t rounds, uint32_t *ticks);
    uint64_t copy_ns(void *to, const void *from, uint64_t size);
    double ticks_per_ns(void);
    """
)
ffibuilder.set_source(
    "hostd.bench._hardware",
    '#include "hardware.h"\n',
    sources=[str(HERE / "hardware.c")],
    include_dirs=[str(HERE)],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
)
