"""cffi build script of `hostd.vmm._calls`: the calls of a unikernel guest that are served in C."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

ffibuilder = FFI()
ffibuilder.cdef(
    """
    #define CALLS_BELLS 4096
    struct kvm_run;
    struct guest_calls {
        uint64_t console_left, waits, console_bytes;
        ...;
    };
    int calls_open(struct guest_calls *calls, void *page, int console_fd, int kick_fd, const int *bells, uint32_t count);
    void calls_close(struct guest_calls *calls);
    int calls_exit(void *context, struct kvm_run *run);
    int fence_register(void);
    """
)
ffibuilder.set_source(
    "hostd.vmm._calls",
    '#include "guest_abi.h"\n#include "calls.h"\n',
    sources=[str(HERE / "calls.c")],
    include_dirs=[str(HERE), str(ROOT / "guestlib/include"), str(ROOT / "hostd/kvm")],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
)
