/* vhost_bench.c: the port without its thread, and what it calls. See vhost_bench.h. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* The fuzzer is both the thread that listens and the one that forwards. */
static int no_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *context) {
    (void)thread, (void)attributes, (void)run, (void)context;
    return 0;
}
#define pthread_create(thread, attributes, run, context) no_thread(thread, attributes, run, context)
#define pthread_join(thread, result) ((void)(thread), (void)(result))
#include "vhost_port.c"

#include "vhost_bench.h"

struct port *bench_port;
static int mappings;

/* --- random numbers (xorshift64* seeded by splitmix64) --- */

static uint64_t state;

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

void random_seed(uint64_t seed, uint64_t number) {
    state = mix(mix(seed) ^ number) | 1;
}

uint64_t random_next(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

uint64_t below(uint64_t limit) {
    return limit ? (random_next() >> 11) % limit : 0;
}

uint64_t nasty(uint64_t size) {
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     7,
                                     8,
                                     11,
                                     12,
                                     13,
                                     14,
                                     15,
                                     16,
                                     63,
                                     64,
                                     255,
                                     256,
                                     0xfff,
                                     0x1000,
                                     0x7fff,
                                     0x8000,
                                     0xffff,
                                     0x10000,
                                     0x7fffffff,
                                     0x80000000,
                                     0xfffffffe,
                                     0xffffffff,
                                     0x100000000,
                                     0x7fffffffffffffff,
                                     0x8000000000000000,
                                     0xfffffffffffff000,
                                     0xffffffffffffffff};
    switch (below(4)) {
    case 0:
        return edges[below(sizeof edges / sizeof *edges)];
    case 1:
        return size + below(5) - 2;
    case 2:
        return below(size + 1);
    default:
        return random_next();
    }
}

/* --- mappings between pages without access (linked with --wrap=mmap,--wrap=munmap) --- */

enum { PAGE = 4096 };
void *__real_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t size);
void *__wrap_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t size);

void *__wrap_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset) {
    if (at || flags & MAP_FIXED)
        return __real_mmap(at, size, access, flags, fd, offset);
    size_t whole = (size + PAGE - 1) / PAGE * PAGE;
    if (whole > 1ull << 45) /* There is no room for the pages around it. */
        return MAP_FAILED;
    uint8_t *around =
        __real_mmap(NULL, whole + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (around == MAP_FAILED)
        return MAP_FAILED;
    void *inside = __real_mmap(around + PAGE, size, access, flags | MAP_FIXED, fd, offset);
    if (inside == MAP_FAILED) {
        int error = errno;
        __real_munmap(around, whole + 2 * PAGE);
        errno = error;
        return MAP_FAILED;
    }
    mappings++;
    return inside;
}

int __wrap_munmap(void *at, size_t size) {
    mappings--;
    return __real_munmap((uint8_t *)at - PAGE, (size + PAGE - 1) / PAGE * PAGE + 2 * PAGE);
}

int bench_mappings(void) {
    return mappings;
}

/* --- what a switch does for a port --- */

int switch_lock_within(struct net_switch *sw, int64_t ns) {
    (void)sw, (void)ns;
    return 0;
}

void switch_unlock(struct net_switch *sw) {
    (void)sw;
}

void switch_port_changed(struct net_switch *sw, struct port *port) {
    (void)sw, (void)port;
}

void switch_quarantine(struct net_switch *sw, struct port *port, enum port_error error, const char *field) {
    (void)sw;
    port->quarantined = (uint8_t)error;
    port->field = field;
}

/* --- the port --- */

struct vhost_user *bench_user(void) {
    return &of(bench_port)->user;
}

void bench_open(uint32_t mtu) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/vhost_fuzz.%d", getpid());
    bench_port = vhost_port_new("fuzzed", path, NULL);
    if (!bench_port) {
        perror(path);
        exit(2);
    }
    bench_port->max_frame = mtu + 18;
}

void bench_close(void) {
    bench_port->ops->close(bench_port);
}

void bench_begin(void) {
    if (begin_session(of(bench_port)))
        abort();
}

void bench_end(enum port_error error) {
    end_session(of(bench_port), error, error == PORT_E_PROTOCOL ? "request" : NULL);
}

int bench_message(struct vhost_message *message, const int *fds, uint32_t fd_count) {
    int own[VHOST_TABLE];
    for (uint32_t i = 0; i < fd_count; i++)
        own[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
    uint32_t request = message->request;
    int answered = vhost_user_message(bench_user(), message, own, fd_count);
    if (answered < 0 && !bench_user()->field) {
        fprintf(stderr, "request %u was refused without a reason\n", request);
        abort();
    }
    return answered;
}

int bench_tell(uint32_t request, const void *payload, uint32_t size, const int *fds, uint32_t fd_count,
               struct vhost_message *reply) {
    struct vhost_message message = {.request = request, .flags = 1, .size = size};
    if (size)
        memcpy(message.bytes, payload, size);
    int answered = bench_message(&message, fds, fd_count);
    if (reply)
        *reply = message;
    return answered;
}

enum port_error bench_serve(int fd) {
    const char *request = NULL;
    return serve(of(bench_port), fd, &request);
}

static void claim(int holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "the port's own view is broken: %s\n", what);
    abort();
}

void bench_check(void) {
    const struct vhost_port *vp = of(bench_port);
    const struct vhost_memory *memory = &vp->user.memory;
    claim(memory->count <= VHOST_REGIONS, "number of regions");
    for (uint32_t i = 0; i < VHOST_REGIONS; i++) {
        const struct vhost_region *region = &memory->regions[i];
        if (i >= memory->count) {
            claim(!region->size && !region->map, "a region behind the last");
            continue;
        }
        claim(region->size && region->hva >= (uint8_t *)region->map &&
                  region->size <= region->map_size - (uint64_t)(region->hva - (uint8_t *)region->map),
              "a region outside its mapping");
        claim(region->gpa + (region->size - 1) >= region->gpa, "a region that wraps");
        claim(!i || memory->regions[i - 1].gpa + (memory->regions[i - 1].size - 1) < region->gpa, "order of regions");
    }
    claim(mappings == (int)memory->count + 2, "mappings left over"); /* two: the port, the bounce buffer */
    uint32_t active = 0;
    for (uint32_t i = 0; i < VHOST_RINGS; i++) {
        const struct vring_queue *ring = &vp->user.rings[i];
        active += (uint32_t)vhost_user_active(&vp->user, i);
        if (!vring_live(ring))
            continue;
        const struct vring_setup *setup = &ring->setup;
        claim(ring->mask + 1u == setup->size, "size of a queue");
        claim((const uint8_t *)ring->desc == vhost_memory_user(memory, setup->desc, 16ull * setup->size),
              "place of a queue");
        claim(!ring->held, "frames that were not given back");
        claim(i % 2 || (uint16_t)(ring->looked - ring->next) <= VRING_AHEAD, "chains ahead");
    }
    claim(active == vp->receives + vp->transmits, "queues in use");
    claim(vp->port.up == (active != 0), "up");
}
