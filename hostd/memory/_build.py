"""cffi build script of `hostd.memory._map`: mapping memory for a guest, and the slot table's C side."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

FLAGS = [
    "MAP_SHARED",
    "MAP_PRIVATE",
    "MAP_ANONYMOUS",
    "MAP_NORESERVE",
    "MAP_HUGETLB",
    "MAP_HUGE_2MB",
    "MADV_HUGEPAGE",
    "MADV_NOHUGEPAGE",
    "MADV_MERGEABLE",
    "MADV_POPULATE_READ",
    "MADV_POPULATE_WRITE",
    "MADV_PAGEOUT",
]

ffibuilder = FFI()
ffibuilder.cdef(
    "".join(f"#define {name} ...\n" for name in FLAGS)
    + """
    struct slot_row { uint64_t gpa, size; uint8_t *hva; uint32_t writable; int give; uint32_t page; ...; };
    struct slot_rows { uint32_t count; ...; };
    int map_reserve(size_t size, size_t align, size_t phase, uintptr_t *at);
    int map_over(uintptr_t at, size_t size, int writable, int flags, int fd, uint64_t offset);
    int map_drop(uintptr_t at, size_t size);
    int map_protect(uintptr_t at, size_t size, int writable);
    int map_advise(uintptr_t at, size_t size, int advice);
    int map_lock(uintptr_t at, size_t size);
    void map_name(uintptr_t at, size_t size, const char *name);
    int64_t map_huge_page(int fd);
    int rows_open(struct slot_rows *table);
    void rows_close(struct slot_rows *table);
    int rows_insert(struct slot_rows *table, const struct slot_row *row);
    int rows_remove(struct slot_rows *table, uint64_t gpa);
    uintptr_t rows_hva(struct slot_rows *table, uint64_t gpa, uint64_t size, int write);
    int64_t map_file_system(int fd);
    int64_t map_resident(uintptr_t at, size_t size);
    int64_t map_page_out(uintptr_t at, size_t size, uint64_t most, int sync);
    """
)
ffibuilder.set_source(
    "hostd.memory._map",
    "#include <sys/mman.h>\n#include <linux/mman.h>\n"
    '#include "map.h"\n#include "pageout.h"\n'
    # Since Linux 5.14; older headers lack them.
    "#ifndef MADV_POPULATE_READ\n#define MADV_POPULATE_READ 22\n#define MADV_POPULATE_WRITE 23\n#endif\n",
    sources=[str(HERE / "map.c"), str(HERE / "pageout.c")],
    include_dirs=[str(HERE)],
    depends=[str(HERE / "map.h"), str(HERE / "pageout.h"), str(HERE / "rows.h")],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
)
