"""cffi build script of `hostd.vmm._calls`: what a guest process does in C: its guest's calls, and being forked."""

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
    struct slot_rows;
    struct guest_calls {
        int waiting;
        uint64_t console_left, waits, console_bytes, given_back;
        ...;
    };
    struct guest_calls *calls_new(void);
    void calls_free(struct guest_calls *calls);
    int calls_open(
        struct guest_calls *calls, void *page, struct slot_rows *memory, int console_fd, int kick_fd,
        const int *bells, uint32_t count);
    void calls_close(struct guest_calls *calls);
    int calls_exit(void *context, struct kvm_run *run);
    void calls_go_on(struct guest_calls *calls);
    void calls_plugged(struct guest_calls *calls);
    int fence_register(void);

    #define NURSERY_CHILD 0
    #define NURSERY_MESSAGE 1
    #define NURSERY_CALLER 2
    #define NURSERY_ENDED 3
    #define NURSERY_NO_FORK 4
    struct nursery_child { int pid; int status; char name[64]; };
    struct nursery {
        int link, listener, error;
        uint32_t count;
        struct nursery_child *children;
        ...;
    };
    int nursery_open(struct nursery *nursery, int link);
    int nursery_serve(struct nursery *nursery);
    int nursery_born(struct nursery *nursery, const char *name);
    int nursery_reap(struct nursery *nursery, struct nursery_child *ended);

    struct heap { uint32_t count; ...; };
    int heap_freeze(struct heap *heap);
    int heap_share(const struct heap *heap);
    """
)
ffibuilder.set_source(
    "hostd.vmm._calls",
    '#include "guest_abi.h"\n#include "calls.h"\n#include "nursery.h"\n#include "heap.h"\n',
    sources=[str(HERE / "calls.c"), str(HERE / "nursery.c"), str(HERE / "heap.c")],
    include_dirs=[str(HERE), str(ROOT / "guestlib/include"), str(ROOT / "hostd/kvm"), str(ROOT / "hostd/memory")],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
)
