"""cffi build script of `hostd.bench.traffic._traffic`: what the network benchmark sends through a forwarder."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[2]

ffibuilder = FFI()
ffibuilder.cdef("""
    #define TRAFFIC_HEADER ...
    #define TRAFFIC_LONGEST ...
    struct traffic_queue {
        char *desc, *avail, *used, *buffers; uint64_t buffers_gpa; uint32_t size, room; uint16_t next_avail, next_used;
        int kick;
    };
    struct traffic {
        uint32_t frame_size, window; uint8_t ethernet[14]; uint64_t sent, received, next, lost;
        struct traffic_queue *transmit, *receive; void *out_ring, *in_ring; uint64_t ring_size;
        uint32_t max_message, ring_flags;
        int out_bell, in_bell;
    };
    struct traffic_count { uint64_t frames, wall_ns, forwarder_ns, idle_ns; };
    struct traffic_result { struct traffic_count all, quiet; uint64_t lost; };
    enum { TRAFFIC_OK, TRAFFIC_WRONG, TRAFFIC_RING, TRAFFIC_CLOCK, TRAFFIC_SILENT, ... };
    void traffic_fill(struct traffic_queue *queue);
    int traffic_run(struct traffic *traffic, int forwarder, uint64_t warm_ns, uint64_t ns, uint64_t most_ns,
                    struct traffic_result *result);
    int traffic_copy(void *from, void *to, uint64_t size, uint32_t max_message);
""")
ffibuilder.set_source(
    "hostd.bench.traffic._traffic",
    '#include "traffic.h"\n#include "copy.h"\n',
    sources=[str(HERE / "traffic.c"), str(HERE / "copy.c")],
    include_dirs=[str(HERE), str(TREE / "shm" / "include")],
    depends=[str(HERE / "traffic.h"), str(HERE / "copy.h")],
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror"],
)
