/*
 * ring_fuzz.c: random bytes over regions and channels while their readers and writers run.
 *
 *     ring_fuzz SEED CASES        one thread: spoil, use, spoil, use
 *     ring_fuzz SEED CASES race   a second thread spoils at the same time
 *
 * Built with -fsanitize=address,undefined: the memory of each case is a heap block of exactly the channel's size, so that
 * reading or writing one byte outside ends the program. A handle that does not come to an end is met by the alarm.
 */
#include <pthread.h>
#include <shm/barrier.h>
#include <shm/broadcast.h>
#include <shm/mpsc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 24, LANES = 3, PARTIES = 5 };

static uint64_t state;
static uint64_t received, refused; /* so that a fuzzer that reaches nothing is seen */
static volatile uint64_t sink;

static uint64_t next(uint64_t *s) {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static uint64_t below(uint64_t limit) {
    return next(&state) % limit;
}

/* What breaks arithmetic: edges, and anything. */
static uint64_t nasty(uint64_t *s, uint64_t size) {
    static const uint64_t edges[] = {0, 1, 7, 8, 63, 64, 65, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 0x100000000,
                                     0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff};
    switch (next(s) % 4) {
    case 0:
        return edges[next(s) % (sizeof edges / sizeof *edges)];
    case 1:
        return size + next(s) % 5 - 2;
    case 2:
        return next(s) % (size + 1);
    default:
        return next(s);
    }
}

static void spoil(uint64_t *s, unsigned char *memory, uint64_t size) {
    uint64_t value = nasty(s, size), at;
    switch (next(s) % 5) {
    case 0: /* an index or a state */
        at = next(s) % (size < 512 ? size / 8 : 64) * 8;
        memcpy(memory + at, &value, 8);
        break;
    case 1: /* one byte */
        memory[next(s) % size] = (unsigned char)value;
        break;
    case 2: /* a run of bytes */
        at = next(s) % size;
        for (uint64_t end = at + next(s) % 64; at < end && at < size; at++)
            memory[at] = (unsigned char)next(s);
        break;
    default: /* headers with sequences that will be believed, and any length */
        for (uint64_t line = next(s) % 8 * 64; line + 64 <= size; line += 64 * (1 + next(s) % 8)) {
            uint64_t position = (line / 64 - next(s) % 9) & 0xffffffff;
            value = nasty(s, size) << 32 | (uint32_t)(position + 1);
            memcpy(memory + line, &value, 8);
        }
    }
}

/* A header that the reader at `header` will believe, with a length of our choice. */
static void spoil_header(uint64_t *header, uint64_t position, uint64_t size) {
    uint64_t value = nasty(&state, size) << 32 | ring_sequence(position);
    memcpy(header, &value, 8);
}

static void touch(const void *data, uint64_t size) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < size; i++)
        sum += ((const unsigned char *)data)[i];
    sink += sum;
}

static void check(int64_t result, const char *field) {
    if (result == SHM_E_CORRUPT) {
        refused++;
        if (!field || !*field)
            abort(); /* An error names its field. */
    } else if (result < SHM_E_CONFIG) {
        abort();
    }
}

static void use_consumer(struct ring *ring, char *buffer, uint64_t room) {
    const void *payload;
    uint32_t size;
    int bell;
    ring_has_data(ring);
    if (below(2)) {
        int result = ring_peek(ring, &payload, &size);
        check(result, ring->field);
        if (result == SHM_OK) {
            if (size > ring->max_message)
                abort();
            touch(payload, size);
            received++;
            ring_release(ring);
        }
    } else {
        int64_t got = ring_receive(ring, buffer, room, &bell);
        check(got, ring->field);
        received += got >= 0;
    }
}

static void use_producer(struct ring *ring, const char *data) {
    uint32_t size = (uint32_t)below(ring->max_message + 2ull);
    void *payload;
    int bell;
    ring_has_room(ring, size);
    if (below(2)) {
        int result = ring_reserve(ring, size, &payload);
        check(result, ring->field);
        if (result == SHM_OK) {
            memset(payload, 0x5a, size);
            if (below(4))
                ring_commit(ring, (uint32_t)below(size + 1ull));
        }
    } else {
        int result = ring_send(ring, data, size, &bell);
        check(result, ring->field);
    }
}

static void spsc(unsigned char *memory, uint64_t bytes, uint64_t size, uint32_t max, char *buffer) {
    struct ring in, out;
    struct ring_shared *shared = (struct ring_shared *)memory;
    if (ring_open(&in, shared, size, max, 0) || ring_open(&out, shared, size, max, 0))
        abort();
    ring_attach_consumer(&in);
    int sending = ring_attach_producer(&out) == SHM_OK;
    for (int i = 0; i < STEPS; i++) {
        switch (below(6)) {
        case 0:
            spoil(&state, memory, bytes);
            break;
        case 1:
            spoil_header(ring_header(&in, in.position), in.position, size);
            break;
        case 2:
            if (!below(4)) {
                ring_open(&out, shared, size, max, 0);
                int result = ring_attach_producer(&out);
                check(result, out.field);
                sending = result == SHM_OK;
                ring_attach_consumer(&in);
            }
            break;
        case 3:
            if (sending)
                use_producer(&out, buffer);
            break;
        default:
            use_consumer(&in, buffer, max);
        }
    }
    shm_peer_ended(&shared->producer);
}

static void mpsc(unsigned char *memory, uint64_t bytes, uint64_t size, uint32_t max, char *buffer) {
    struct ring lanes[LANES], out;
    struct mpsc in;
    const void *payload;
    uint32_t got;
    if (mpsc_attach_consumer(&in, memory, size, max, LANES, 0, lanes))
        abort();
    for (int i = 0; i < STEPS; i++) {
        uint32_t lane = (uint32_t)below(LANES);
        switch (below(4)) {
        case 0:
            spoil(&state, memory, bytes);
            break;
        case 1:
            spoil_header(ring_header(&lanes[lane], lanes[lane].position), lanes[lane].position, size);
            break;
        case 2:
            if (mpsc_open_lane(&out, memory, size, max, lane, LANES, 0))
                abort();
            if (ring_attach_producer(&out) == SHM_OK)
                use_producer(&out, buffer);
            break;
        default: {
            int result = mpsc_peek(&in, &payload, &got);
            check(result, in.field);
            if (result == SHM_OK) {
                touch(payload, got);
                received++;
                mpsc_release(&in);
            }
            mpsc_has_data(&in);
            mpsc_ended(&in);
        }
        }
    }
}

static void broadcast(unsigned char *memory, uint64_t bytes, uint64_t size, uint32_t max, char *buffer) {
    struct broadcast in, out;
    struct broadcast_shared *shared = (struct broadcast_shared *)memory;
    void *payload;
    if (broadcast_open(&in, shared, size, max, 0) || broadcast_open(&out, shared, size, max, 0))
        abort();
    broadcast_attach_reader(&in);
    int sending = broadcast_attach_writer(&out) == SHM_OK;
    for (int i = 0; i < STEPS; i++) {
        switch (below(6)) {
        case 0:
            spoil(&state, memory, bytes);
            break;
        case 1:
            spoil_header(broadcast_at(&in, in.position), in.position, size);
            break;
        case 2: {
            if (below(4))
                break;
            if (broadcast_open(&out, shared, size, max, 0))
                abort();
            int result = broadcast_attach_writer(&out);
            check(result, out.field);
            sending = result == SHM_OK;
            broadcast_attach_reader(&in);
            break;
        }
        case 3: {
            uint32_t length = (uint32_t)below(max + 2ull);
            if (!sending || broadcast_reserve(&out, length, &payload))
                break;
            memset(payload, 0x5a, length);
            broadcast_commit(&out, length);
            break;
        }
        default: {
            int64_t got = broadcast_receive(&in, buffer, below(4) ? max : below(max + 1ull));
            check(got, in.field);
            received += got >= 0;
            broadcast_has_data(&in);
        }
        }
    }
}

static void barrier(unsigned char *memory, uint64_t bytes) {
    struct barrier party;
    if (barrier_attach(&party, memory, PARTIES, (uint32_t)below(PARTIES), 0))
        abort();
    for (int i = 0; i < STEPS; i++) {
        if (below(2))
            spoil(&state, memory, bytes);
        barrier_arrive(&party);
        int result = barrier_passed(&party);
        check(result, party.field);
    }
}

static void directory(void) {
    uint64_t size = 64 * (1 + below(130));
    unsigned char *memory = aligned_alloc(64, size);
    memset(memory, 0, size);
    struct shm_channel_entry entry;
    const char *field = NULL;
    if (size >= sizeof(struct shm_region_header)) {
        struct shm_region_header *header = (struct shm_region_header *)memory;
        header->magic = SHM_MAGIC;
        header->version = SHM_VERSION;
    }
    for (int i = 0; i < STEPS; i++) {
        if (size > SHM_DIRECTORY + 64 && below(2)) /* A name, so that what follows it is looked at. */
            memory[SHM_DIRECTORY + below(size - SHM_DIRECTORY) / 128 * 128 % (size - SHM_DIRECTORY)] = 'a';
        spoil(&state, memory, size);
        uint32_t index = below(2) ? (uint32_t)below(64) : (uint32_t)nasty(&state, size);
        int result = shm_directory_entry(memory, size, index, &entry, &field);
        check(result, field);
        if (result == SHM_OK) {
            if (entry.offset > size || entry.span > size - entry.offset)
                abort();
            touch(memory + entry.offset, entry.span);
            received++;
        }
    }
    free(memory);
}

struct attacker {
    unsigned char *memory;
    uint64_t bytes;
    uint64_t seed;
    int stop;
};

/* Not a data race to the machine, whatever the language says: this is what a hostile peer does. */
static void *attack(void *argument) {
    struct attacker *a = argument;
    while (!__atomic_load_n(&a->stop, __ATOMIC_ACQUIRE))
        spoil(&a->seed, a->memory, a->bytes);
    return NULL;
}

static void one_case(int race) {
    static const char *const kinds = "smbp";
    char kind = kinds[below(4)];
    uint64_t size = 512ull << below(4);
    uint64_t limit = kind == 'b' ? broadcast_limit(size) : ring_limit(size);
    uint32_t max = (uint32_t)(1 + below(limit));
    uint64_t bytes = kind == 's'   ? ring_bytes(size)
                     : kind == 'm' ? mpsc_bytes(size, LANES)
                     : kind == 'b' ? broadcast_bytes(size)
                                   : barrier_bytes(PARTIES);
    unsigned char *memory = aligned_alloc(64, bytes % 64 ? bytes + 64 - bytes % 64 : bytes);
    char *buffer = malloc(max + 1ull);
    memset(memory, 0, bytes);
    memset(buffer, 0x33, max + 1ull);
    if (!below(8))
        spoil(&state, memory, bytes);
    struct attacker attacker = {.memory = memory, .bytes = bytes, .seed = next(&state)};
    pthread_t thread;
    if (race && pthread_create(&thread, NULL, attack, &attacker))
        abort();
    for (int turns = race ? 200 : 1; turns--;) {
        if (kind == 's')
            spsc(memory, bytes, size, max, buffer);
        else if (kind == 'm')
            mpsc(memory, bytes, size, max, buffer);
        else if (kind == 'b')
            broadcast(memory, bytes, size, max, buffer);
        else
            barrier(memory, bytes);
    }
    if (race) {
        __atomic_store_n(&attacker.stop, 1, __ATOMIC_RELEASE);
        pthread_join(thread, NULL);
    }
    free(buffer);
    free(memory);
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    uint64_t cases = strtoull(argv[2], NULL, 10);
    int race = argc > 3;
    for (uint64_t i = 0; i < cases; i++) {
        alarm(10); /* A case takes microseconds. */
        if (i % 8 || race)
            one_case(race);
        else
            directory();
    }
    printf("%lu cases, %lu messages received, %lu refused\n", cases, received, refused);
    return 0;
}
