"""cffi build script of `shm._shm`: the rings of include/shm for processes, with waiting and bells."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

NUMBERS = [
    "SHM_MAGIC SHM_VERSION SHM_NAME SHM_DIRECTORY SHM_PAGE SHM_LINE SHM_NO_BELL",
    "SHM_SPSC SHM_MPSC SHM_BROADCAST SHM_BARRIER SHM_FENCED SHM_ALWAYS_RING",
    "SHM_NEVER SHM_ATTACHED SHM_CLOSED SHM_GONE",
    "SHM_OK SHM_EMPTY SHM_FULL SHM_E_CLOSED SHM_E_GONE SHM_E_TOO_LONG SHM_E_CORRUPT SHM_E_CONFIG",
    "END_TIMEOUT END_INTERRUPTED END_BUSY END_ROLE END_CLOSING END_SYSTEM END_SPIN_ALWAYS",
    "END_SEND END_RECEIVE END_JOIN MPSC_MAX_LANES BARRIER_MAX_PARTIES RING_MIN_SIZE RING_MAX_SIZE RING_HEADER",
    "BROADCAST_HEADER RING_PAD",
]

TYPES = """
    struct shm_region_header {
        uint64_t magic; uint32_t version; uint32_t channels; uint64_t size; uint64_t data_offset; uint64_t generation;
        uint32_t bells; uint32_t reserved[5]; char name[128]; uint8_t reserved2[64];
    };
    struct shm_channel_entry {
        char name[48]; uint32_t kind; uint32_t flags; uint64_t offset; uint64_t span; uint64_t size;
        uint32_t max_message; uint32_t lanes; uint32_t data_bell; uint32_t space_bell; uint32_t reserved[8];
    };
    struct shm_config {
        uint32_t kind; uint32_t flags; uint64_t offset; uint64_t size; uint32_t max_message; uint32_t lanes;
        uint32_t lane; uint32_t data_bell; uint32_t space_bell;
    };
    struct ring_shared {
        uint64_t head; uint64_t tail; uint32_t data_wait; uint32_t space_wait; uint32_t producer;
        uint32_t consumer; ...;
    };
    struct mpsc_shared { uint32_t data_wait; uint32_t space_wait; uint32_t consumer; ...; };
    struct broadcast_shared {
        uint64_t claim; uint64_t latest; uint64_t count; uint32_t data_wait; uint32_t writer; ...;
    };
    struct barrier_shared { uint32_t generation; uint32_t data_wait; ...; };
    struct barrier_party { uint32_t arrived; uint32_t state; };
    struct bell_device { uint32_t *registers; const char *uio; const char *config; };
    struct shm_end {
        struct shm_config config; int role; uint64_t spin_ns; uint64_t sleeps; uint64_t late; uint64_t rings;
        const char *field; ...;
    };
    struct end_progress { uint32_t sent; uint64_t bytes; uint64_t waited_ns; };
"""

CALLS = """
    int end_register(void);
    uint64_t end_bytes(const struct shm_config *config);
    uint64_t end_limit(uint32_t kind, uint64_t size);
    int end_open(struct shm_end *end, void *region, uint64_t region_size, const struct shm_config *config, int role,
                 int data_fd, int space_fd, int readonly);
    int end_open_device(struct shm_end *end, void *region, uint64_t region_size, const struct shm_config *config,
                        int role, const struct bell_device *device, int readonly);
    void end_close(struct shm_end *end, int tell);
    int end_send(struct shm_end *end, const char *data, uint64_t size, int64_t timeout_ns);
    int end_send_many(struct shm_end *end, const char *data, const uint32_t *sizes, uint32_t count, int64_t timeout_ns,
                      struct end_progress *progress);
    int end_reserve(struct shm_end *end, uint64_t size, int64_t timeout_ns, uintptr_t *payload);
    int end_commit(struct shm_end *end, uint64_t size);
    int64_t end_receive(struct shm_end *end, char *data, uint64_t room, int64_t timeout_ns);
    int64_t end_peek(struct shm_end *end, int64_t timeout_ns, uintptr_t *payload);
    int end_release(struct shm_end *end);
    int end_join(struct shm_end *end, int64_t timeout_ns);
    int64_t end_receive_many(struct shm_end *end, char *data, uint64_t room, uint64_t enough, uint32_t *sizes,
                             uint32_t count, int64_t timeout_ns);
    uint64_t end_lost(const struct shm_end *end);
    uint32_t end_lane(const struct shm_end *end);
    int end_mark(void *region, uint64_t region_size, const struct shm_config *config, int role, uint32_t state);
    int end_state(void *region, uint64_t region_size, const struct shm_config *config, int role);
    int shm_directory_entry(const void *region, uint64_t size, uint32_t index, struct shm_channel_entry *entry,
                            const char **field);
    uint64_t loop_ring_bytes(uint64_t size);
    uint64_t loop_answer(void *in, void *out, uint64_t size, uint32_t message, uint64_t rounds);
    uint64_t loop_ask(void *out, void *in, uint64_t size, uint32_t message, uint64_t rounds, uint32_t *ticks);
    uint64_t loop_produce(void *ring, uint64_t size, uint32_t message, uint64_t count, const char *buffer,
                          uint64_t window);
    uint64_t loop_consume(void *ring, uint64_t size, uint32_t message, uint64_t count, char *buffer, uint64_t window);
    uint64_t loop_memcpy(char *to, const char *from, uint64_t window, uint64_t piece, uint64_t total);
    void loop_bounce_answer(uint64_t *line, uint64_t rounds);
    void loop_bounce(uint64_t *line, uint64_t rounds, uint32_t *ticks);
    double loop_ticks_per_ns(void);
"""

ffibuilder = FFI()
ffibuilder.cdef("".join(f"#define {name} ...\n" for line in NUMBERS for name in line.split()) + TYPES + CALLS)
ffibuilder.set_source(
    "shm._shm",
    '#include "end.h"\n#include "loops.h"\n',
    sources=[str(HERE / "src" / f"{name}.c") for name in ("end", "bell", "state", "loops")],
    include_dirs=[str(HERE / "include"), str(HERE / "src")],
    depends=[str(path) for path in sorted(HERE.glob("**/*.h"))],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
)
