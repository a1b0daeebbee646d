/*
 * stream_host.c: one of two host processes that send numbered messages: what the guests' figures are held against.
 *
 * Arguments: send|receive ring|place|bytes|memcpy DESCRIPTOR CPU. `ring` and `place` map the descriptor, which holds two rings as
 * the guests' channels are: one of SMALL_RING bytes for messages up to SMALL, behind it one of LARGE_RING (`place`: one of
 * PLACE_RING). `bytes` is any stream of bytes. `memcpy` copies messages in this process and is told `send` only.
 * Each line of standard input, "SIZE COUNT", is a job; the receiver (of memcpy: the sender) says "ready", and then "NS MESSAGES":
 * how long those after the first took. Every message's number is checked; a wrong one ends the process with a sentence.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <shm/ring.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SMALL 8192
#define LONGEST (1 << 20)
#define SMALL_RING (256 << 10)
#define LARGE_RING (4 << 20)
#define PLACE_RING (64 << 20)
#define STREAM_BUFFER (256 << 10)

static unsigned char message[LONGEST] __attribute__((aligned(4096)));
static unsigned char buffer[STREAM_BUFFER + LONGEST] __attribute__((aligned(4096)));
static struct ring small, large, place;
static int fd;

/* The time from when the first message was there. */
static uint64_t start, timed;

static _Noreturn void fail(const char *what, uint64_t number) {
    fprintf(stderr, "%s %lu%s%s\n", what, number, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void begin(uint64_t left) {
    if (!start) {
        start = now_ns();
        timed = left;
    }
}

static inline void expect(const void *from, uint64_t wanted) {
    uint64_t number;
    memcpy(&number, from, sizeof number);
    if (__builtin_expect(number != wanted, 0))
        fail("another message came where this was due:", wanted);
}

/* ---- rings ------------------------------------------------------------------------------------------------------------- */

static void open_ring(struct ring *ring, void *memory, uint64_t size, int sends) {
    if (ring_open(ring, memory, size, LONGEST < ring_limit(size) ? LONGEST : (uint32_t)ring_limit(size), 0) ||
        (sends && ring_attach_producer(ring)))
        fail("a ring can't be opened, of bytes", size);
    if (!sends)
        ring_attach_consumer(ring);
}

static void open_rings(int sends, int in_place) {
    uint64_t size = in_place ? ring_bytes(PLACE_RING) : ring_bytes(SMALL_RING) + ring_bytes(LARGE_RING);
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED)
        fail("can't map the rings, bytes", size);
    if (in_place) {
        open_ring(&place, memory, PLACE_RING, sends);
        return;
    }
    open_ring(&small, memory, SMALL_RING, sends);
    open_ring(&large, memory + ring_bytes(SMALL_RING), LARGE_RING, sends);
}

static void send_ring(uint32_t size, uint64_t count) {
    struct ring *ring = size <= SMALL ? &small : &large;
    int bell, result;
    for (uint64_t i = 0; i < count; i++) {
        memcpy(message, &i, sizeof i);
        while ((result = ring_send(ring, message, size, &bell)) == SHM_FULL)
            ring_spin_for_room();
        if (result)
            fail("can't send message", i);
    }
}

static void receive_ring(uint32_t size, uint64_t count) {
    struct ring *ring = size <= SMALL ? &small : &large;
    int bell;
    int64_t got;
    for (uint64_t i = 0; i < count; i++) {
        while ((got = ring_receive(ring, message, LONGEST, &bell)) == SHM_EMPTY)
            ring_spin(ring);
        if (got != size)
            fail("can't receive message", i);
        expect(message, i);
        begin(count - i - 1);
    }
}

static void send_place(uint32_t size, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        void *payload;
        int result;
        while ((result = ring_reserve(&place, size, &payload)) == SHM_FULL)
            ring_spin_for_room();
        if (result)
            fail("can't send message", i);
        memcpy(payload, &i, sizeof i);
        ring_commit(&place, size);
    }
}

static void receive_place(uint32_t size, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        const void *payload;
        uint32_t got;
        int result;
        while ((result = ring_peek(&place, &payload, &got)) == SHM_EMPTY)
            ring_spin(&place);
        if (result || got != size)
            fail("can't receive message", i);
        expect(payload, i);
        ring_release(&place);
        begin(count - i - 1);
    }
}

/* ---- the kernel's ------------------------------------------------------------------------------------------------------ */

/* TCP joins small messages, and would let the last ones wait for a late acknowledgement. Nothing else minds. */
static void at_once(int on) {
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        errno = 0;
}

static void send_bytes(uint32_t size, uint64_t count) {
    at_once(0);
    for (uint64_t i = 0; i < count; i++) {
        memcpy(message, &i, sizeof i);
        for (size_t at = 0; at < size;) {
            ssize_t sent = write(fd, message + at, size - at);
            if (sent < 0 && errno != EINTR)
                fail("can't send message", i);
            at += sent > 0 ? (size_t)sent : 0;
        }
    }
    at_once(1);
}

/* As much as is there at a time, up to the buffer; what of a message is missing comes with the next read. */
static void receive_bytes(uint32_t size, uint64_t count) {
    for (uint64_t i = 0, have = 0; i < count;) {
        uint64_t left = (count - i) * size - have;
        ssize_t got = read(fd, buffer + have, left < STREAM_BUFFER ? left : STREAM_BUFFER);
        if (got <= 0 && !(got < 0 && errno == EINTR))
            fail("can't receive message", i);
        have += got > 0 ? (uint64_t)got : 0;
        uint64_t at = 0;
        for (; have - at >= size; at += size, i++)
            expect(buffer + at, i);
        memmove(buffer, buffer + at, have - at);
        have -= at;
        if (i)
            begin(count - i);
    }
}

/* ---- one process ------------------------------------------------------------------------------------------------------- */

/* Into the memory of a ring and out again, as a message goes, by one thread: no ring, no other processor. */
static void copy(uint32_t size, uint64_t count) {
    static unsigned char *memory;
    uint64_t span = ring_span(size) * SHM_LINE, window = size <= SMALL ? SMALL_RING : LARGE_RING;
    if (!memory && !(memory = aligned_alloc(4096, LARGE_RING)))
        fail("no memory for a buffer of bytes", LARGE_RING);
    begin(count);
    for (uint64_t i = 0, at = 0; i < count; i++) {
        memcpy(message, &i, sizeof i);
        memcpy(memory + at, message, size);
        __asm__ volatile("" : : "r"(memory) : "memory");
        memcpy(buffer, memory + at, size);
        expect(buffer, i);
        at = at + 2 * span <= window ? at + span : 0;
    }
}

typedef void work(uint32_t size, uint64_t count);

static work *find(int sends, const char *what) {
    if (!strcmp(what, "ring") || !strcmp(what, "place")) {
        int in_place = !strcmp(what, "place");
        open_rings(sends, in_place);
        return in_place ? (sends ? send_place : receive_place) : (sends ? send_ring : receive_ring);
    }
    if (!strcmp(what, "memcpy"))
        return copy;
    return sends ? send_bytes : receive_bytes;
}

static void use_cpu(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("can't run on CPU", (uint64_t)cpu);
}

int main(int argc, char **argv) {
    uint32_t size;
    uint64_t count;
    if (argc != 5)
        fail("four arguments: send|receive ring|place|bytes|memcpy DESCRIPTOR CPU; not", (uint64_t)argc - 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* A spinning process whose starter died would spin for ever. */
    use_cpu(atoi(argv[4]));
    fd = atoi(argv[3]);
    memset(message, 1, sizeof message);
    memset(buffer, 1, sizeof buffer);
    int answers = !strcmp(argv[1], "receive") || !strcmp(argv[2], "memcpy");
    work *work = find(!strcmp(argv[1], "send"), argv[2]);
    while (scanf("%u %lu", &size, &count) == 2) {
        if (size < sizeof count || size > LONGEST || count < 2)
            fail("no job that can be done, of bytes", size);
        start = 0;
        if (answers && (puts("ready"), fflush(stdout)))
            fail("nobody to answer, CPU", (uint64_t)atoi(argv[4]));
        work(size, count);
        if (answers)
            printf("%lu %lu\n", now_ns() - start, timed);
        fflush(stdout);
    }
    return 0;
}
