/*
 * bounce_host.c: one of two host processes that bounce messages: what the guests' round trips are held against.
 *
 * Arguments: ask|answer KIND CPU DESCRIPTOR...
 *
 *     line      bounces one cache line of the first descriptor's memory; no message, no ring: the least there is
 *     ring      two rings in that memory, as the guests' channels are; both spin
 *     sleep     likewise, but as host processes' ends of channels sleep: DESCRIPTORs 2 and 3 are the bells there and back
 *     eventfd   writes an eventfd and blocks on the other one: DESCRIPTORs as `sleep`; the number goes by the memory
 *     bytes     any streams of bytes: DESCRIPTORs to write to and to read from
 *
 * Each line of standard input, "SIZE WARM_UP COUNT INTERVAL", is a job, told to both; INTERVAL in ticks: questions by the clock
 * (ring and bytes), 0: in turn. Who asks writes COUNT samples to standard output, in ticks of the time stamp counter as 8 bytes
 * each. Every message's number is checked, at both its ends; a wrong one ends the process with a sentence.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <shm/ring.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <x86intrin.h>

#include "end.h"

#define SMALL 65536
#define LONGEST (1 << 20)
#define SMALL_RING (256 << 10)
#define LARGE_RING (4 << 20)
#define OUTSTANDING 64
#define OUTSTANDING_BYTES 65536

static unsigned char message[LONGEST] __attribute__((aligned(4096)));
static unsigned char answer[LONGEST] __attribute__((aligned(4096)));
static char *memory;
static int fds[3];
static uint32_t size;

static _Noreturn void fail(const char *what, uint64_t number) {
    fprintf(stderr, "%s %lu%s%s\n", what, number, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

/* ---- messages ---------------------------------------------------------------------------------------------------------- */

/* Made before it is due: a copy of bytes just written waits for them. */
static inline void make(uint64_t number) {
    memcpy(message + size - sizeof number, &number, sizeof number);
    memcpy(message, &number, sizeof number);
}

static inline void expect(uint64_t wanted) {
    uint64_t first, last;
    memcpy(&first, answer, sizeof first);
    memcpy(&last, answer + size - sizeof last, sizeof last);
    if (__builtin_expect(first != wanted || (size >= 2 * sizeof first && last != wanted), 0))
        fail("another message came where this was due:", wanted);
}

/* ---- ways -------------------------------------------------------------------------------------------------------------- */

/* `send` sends the message that was made last. `receive` waits; `try` says 0 when nothing is there. The numbers that are
 * sent and received are the caller's. */
struct way {
    void (*open)(int asks);
    void (*send)(uint64_t number);
    void (*receive)(uint64_t number);
    int (*try)(uint64_t number);
};

static void map(void) {
    struct stat is;
    if (fstat(fds[0], &is))
        fail("no memory, descriptor", (uint64_t)fds[0]);
    memory = mmap(NULL, (size_t)is.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fds[0], 0);
    if (memory == MAP_FAILED)
        fail("can't map the memory, bytes", (uint64_t)is.st_size);
}

/* A line: one that both write. Numbers go on from job to job, or the next job's first would be there already. */
static uint64_t sent, received;

static void open_line(int asks) {
    map();
    sent = asks ? 1 : 2;
    received = asks ? 2 : 1;
}

static void send_line(uint64_t number) {
    (void)number;
    __atomic_store_n((uint64_t *)memory, sent, __ATOMIC_RELEASE);
    sent += 2;
}

static void receive_line(uint64_t number) {
    (void)number;
    while (__atomic_load_n((uint64_t *)memory, __ATOMIC_ACQUIRE) != received)
        _mm_pause();
    received += 2;
}

/* Rings: small and large, there and back. */
static struct ring out[2], in[2];

static char *ring_memory(int back, int large) {
    return memory + (uint64_t)back * (ring_bytes(SMALL_RING) + ring_bytes(LARGE_RING)) + (large ? ring_bytes(SMALL_RING) : 0);
}

static void open_rings(int asks) {
    map();
    for (int large = 0; large < 2; large++) {
        uint64_t bytes = large ? LARGE_RING : SMALL_RING;
        uint32_t longest = large ? LONGEST : SMALL;
        if (ring_open(&out[large], (void *)ring_memory(!asks, large), bytes, longest, 0) || ring_attach_producer(&out[large]) ||
            ring_open(&in[large], (void *)ring_memory(asks, large), bytes, longest, 0))
            fail("a ring can't be opened, of bytes", bytes);
        ring_attach_consumer(&in[large]);
    }
}

static void send_ring(uint64_t number) {
    struct ring *ring = &out[size > SMALL];
    int bell, result;
    while ((result = ring_send(ring, message, size, &bell)) == SHM_FULL)
        shm_pause();
    if (result)
        fail("can't send message", number);
}

static int try_ring(uint64_t number) {
    int bell;
    int64_t got = ring_receive(&in[size > SMALL], answer, LONGEST, &bell);
    if (got == SHM_EMPTY)
        return 0;
    if (got != size)
        fail("can't receive message", number);
    expect(number);
    return 1;
}

static void receive_ring(uint64_t number) {
    while (!try_ring(number))
        ring_spin(&in[size > SMALL]);
}

/* Ends: as ring, but through the ends of host processes, which sleep. */
static struct shm_end out_end, in_end;

static void open_ends(int asks) {
    map();
    struct shm_config there = {.kind = SHM_SPSC, .size = SMALL_RING, .max_message = SMALL, .lanes = 1}, back = there;
    uint64_t all = 2 * (ring_bytes(SMALL_RING) + ring_bytes(LARGE_RING));
    back.offset = (uint64_t)(ring_memory(1, 0) - memory);
    if (end_register() || end_open(&out_end, memory, all, asks ? &there : &back, END_SEND, fds[asks ? 1 : 2], -1, 0) ||
        end_open(&in_end, memory, all, asks ? &back : &there, END_RECEIVE, fds[asks ? 2 : 1], -1, 0))
        fail("an end can't be opened, of bytes", SMALL_RING);
    in_end.spin_ns = 0;
}

static void send_end(uint64_t number) {
    if (end_send(&out_end, (char *)message, size, -1))
        fail("can't send message", number);
}

static void receive_end(uint64_t number) {
    if (end_receive(&in_end, (char *)answer, LONGEST, -1) != size)
        fail("can't receive message", number);
    expect(number);
}

/* Eventfds: the number in memory, and one system call for each to tell the other. */
static int tell_fd, hear_fd;

static void open_eventfds(int asks) {
    map();
    tell_fd = fds[asks ? 1 : 2];
    hear_fd = fds[asks ? 2 : 1];
}

static void send_eventfd(uint64_t number) {
    uint64_t one = 1;
    __atomic_store_n((uint64_t *)memory, number, __ATOMIC_RELEASE);
    if (write(tell_fd, &one, sizeof one) != sizeof one)
        fail("can't send message", number);
}

static void receive_eventfd(uint64_t number) {
    uint64_t count;
    if (read(hear_fd, &count, sizeof count) != sizeof count || count != 1 ||
        __atomic_load_n((uint64_t *)memory, __ATOMIC_ACQUIRE) != number)
        fail("another message came where this was due:", number);
}

/* Streams of bytes. */
static void open_bytes(int asks) {
    (void)asks;
}

static void send_bytes(uint64_t number) {
    for (size_t at = 0; at < size;) {
        ssize_t done = write(fds[0], message + at, size - at);
        if (done < 0 && errno != EINTR)
            fail("can't send message", number);
        at += done > 0 ? (size_t)done : 0;
    }
}

static void receive_rest(uint64_t number, size_t at) {
    while (at < size) {
        ssize_t done = read(fds[1], answer + at, size - at);
        if (done < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (done <= 0)
            fail("can't receive message", number);
        at += (size_t)done;
    }
    expect(number);
}

static void receive_bytes(uint64_t number) {
    receive_rest(number, 0);
}

static int try_bytes(uint64_t number) {
    ssize_t done = read(fds[1], answer, size);
    if (done < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (done <= 0)
        fail("can't receive message", number);
    receive_rest(number, (size_t)done);
    return 1;
}

static const struct { const char *name; int descriptors; struct way way; } ways[] = {
    {"line", 1, {open_line, send_line, receive_line, NULL}},
    {"ring", 1, {open_rings, send_ring, receive_ring, try_ring}},
    {"sleep", 3, {open_ends, send_end, receive_end, NULL}},
    {"eventfd", 3, {open_eventfds, send_eventfd, receive_eventfd, NULL}},
    {"bytes", 2, {open_bytes, send_bytes, receive_bytes, try_bytes}},
};

/* ---- jobs -------------------------------------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void ask_in_turn(const struct way *way, uint64_t warm_up, uint64_t count,
                                                              uint64_t *samples) {
    uint64_t before = __rdtsc();
    make(0);
    for (uint64_t i = 0; i < warm_up + count; i++) {
        way->send(i);
        make(i + 1);
        way->receive(i);
        uint64_t now = __rdtsc();
        if (i >= warm_up)
            samples[i - warm_up] = now - before;
        before = now;
    }
}

/* As the guests do it; see bounce_guest.c. */
static void ask_by_clock(const struct way *way, uint64_t warm_up, uint64_t count, uint64_t interval, uint64_t *samples) {
    uint64_t all = warm_up + count, asked = 0, got = 0, window = OUTSTANDING_BYTES / size;
    uint64_t start = __rdtsc() + interval;
    window = window > OUTSTANDING ? OUTSTANDING : window ? window : 1;
    while (got < all) {
        if (asked < all && asked - got < window && (int64_t)(__rdtsc() - (start + asked * interval)) >= 0) {
            make(asked);
            way->send(asked++);
        } else if (way->try(got)) {
            if (got >= warm_up)
                samples[got - warm_up] = __rdtsc() - (start + got * interval);
            got++;
        } else {
            _mm_pause();
        }
    }
}

static inline __attribute__((always_inline)) void answer_all(const struct way *way, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        make(i);
        way->receive(i);
        way->send(i);
    }
}

/* A loop of its own for each way, so that none pays for a call that a program of its own would not make. */
static void in_turn(size_t number, int asks, uint64_t warm_up, uint64_t count, uint64_t *samples) {
    switch (number) {
#define WAY(n)                                                         \
    case n:                                                            \
        asks ? ask_in_turn(&ways[n].way, warm_up, count, samples)      \
             : answer_all(&ways[n].way, warm_up + count);              \
        break;
        WAY(0) WAY(1) WAY(2) WAY(3) WAY(4)
    }
}

static void use_cpu(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("can't run on CPU", (uint64_t)cpu);
}

static void block(int fd, int blocks) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, blocks ? flags & ~O_NONBLOCK : flags | O_NONBLOCK))
        fail("can't set the flags of descriptor", (uint64_t)fd);
}

int main(int argc, char **argv) {
    uint64_t warm_up, count, interval;
    size_t number = 0, kinds = sizeof ways / sizeof *ways;
    while (argc > 3 && number < kinds && strcmp(ways[number].name, argv[2]) != 0)
        number++;
    if (argc < 4 || number == kinds || argc != 4 + ways[number].descriptors)
        fail("usage: ask|answer line|ring|sleep|eventfd|bytes CPU DESCRIPTOR...; arguments:", (uint64_t)argc - 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* A spinning process whose starter died would spin for ever. */
    use_cpu(atoi(argv[3]));
    for (int i = 0; i < ways[number].descriptors; i++)
        fds[i] = atoi(argv[4 + i]);
    int asks = !strcmp(argv[1], "ask");
    memset(message, 1, sizeof message);
    memset(answer, 1, sizeof answer);
    const struct way *way = &ways[number].way;
    way->open(asks);
    while (scanf("%u %lu %lu %lu", &size, &warm_up, &count, &interval) == 4) {
        if (size < 8 || size > LONGEST || !count || count > 1 << 24 || (interval && !way->try))
            fail("no job that can be done, of bytes", size);
        uint64_t *samples = calloc(count, sizeof *samples);
        if (!samples)
            fail("no memory for samples:", count);
        memset(samples, 0, count * sizeof *samples);
        if (!asks || !interval) {
            in_turn(number, asks, warm_up, count, samples);
        } else {
            if (way->open == open_bytes)
                block(fds[1], 0);
            ask_by_clock(way, warm_up, count, interval, samples);
            if (way->open == open_bytes)
                block(fds[1], 1);
        }
        if (asks && (fwrite(samples, sizeof *samples, count, stdout) != count || fflush(stdout)))
            fail("nobody to answer, CPU", (uint64_t)atoi(argv[3]));
        free(samples);
    }
    return 0;
}
