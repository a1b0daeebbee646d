/*
 * capture_fuzz.c: captures whose readers write what they like into their rings while frames come, under the address and
 * undefined-behaviour sanitizers. A reader that behaves reads in parallel what it should.
 *
 *     capture_fuzz SEED CASES
 */
#define _GNU_SOURCE
#include "capture.c"

#include <stdio.h>
#include <sys/mman.h>

/* ---- a switch that forwards nothing --------------------------------------------------------------------------------------- */

static switch_tap *tap;
static void *tap_context;

void switch_lock(struct net_switch *sw) {
    (void)sw;
}

void switch_unlock(struct net_switch *sw) {
    (void)sw;
}

void switch_set_tap(struct net_switch *sw, switch_tap *new_tap, void *context) {
    (void)sw;
    tap = new_tap;
    tap_context = context;
}

int fault_guard(void *start, uint64_t size, uint32_t *lost) {
    (void)start, (void)size, (void)lost;
    return 0;
}

void fault_unguard(void *start) {
    (void)start;
}

void frame_copy(const struct frame *frame, uint32_t offset, void *to, uint32_t size) {
    if (offset < FRAME_HEADER || offset + size > frame->size)
        abort();
    memcpy(to, (const uint8_t *)frame->pieces[0].iov_base + offset, size);
}

/* ---- random numbers (xorshift64*, seeded by splitmix64) ------------------------------------------------------------------- */

static uint64_t state;

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static uint64_t next(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

static uint64_t below(uint64_t limit) {
    return limit ? (next() >> 11) % limit : 0;
}

/* ---- a case --------------------------------------------------------------------------------------------------------------- */

enum { REGION = 1 << 17, OFFSET = 4096, MOST = 9000 };

struct reader {
    char *region; /* allocated to the byte: what is written outside is seen */
    struct capture *capture;
    struct ring ring;
    struct capture_filter filter;
    uint32_t snap;
    uint64_t lost, wanted;
    int hostile;
};

static uint8_t bytes[MOST];

static struct shm_config ring_config(int hostile) {
    struct shm_config config = {.kind = SHM_SPSC, .offset = OFFSET, .size = 512ull << below(8), .lanes = 1};
    config.max_message = (uint32_t)ring_limit(config.size);
    if (hostile && !below(4)) {
        config.offset = below(2) ? REGION + below(5) * SHM_LINE - 2 * SHM_LINE : next() >> below(64);
        config.size = below(2) ? 1ull << below(64) : next() >> below(64);
        config.max_message = below(2) ? 100 : (uint32_t)(next() >> below(64));
    }
    return config;
}

static void random_filter(struct capture_filter *filter) {
    *filter = (struct capture_filter){.by_port = !below(2), .by_mac = !below(2)};
    filter->port_count = (uint32_t)below(4);
    filter->mac_count = (uint32_t)below(4);
    for (uint32_t i = 0; i < filter->port_count; i++)
        filter->ports[i] = (uint32_t)below(4);
    for (uint32_t i = 0; i < filter->mac_count; i++)
        filter->macs[i][5] = (uint8_t)below(4);
}

static int open_reader(struct captures *captures, struct reader *reader) {
    const char *field;
    *reader = (struct reader){.hostile = !below(2), .region = calloc(1, REGION), .snap = (uint32_t)below(MOST + 100)};
    struct shm_config config = ring_config(reader->hostile);
    random_filter(&reader->filter);
    reader->capture = capture_add(captures, reader->region, REGION, &config, &reader->filter, reader->snap, &field);
    if (!reader->capture) {
        if (errno == EINVAL && !field)
            abort();
        if (errno == EINVAL && !reader->hostile && config.max_message >= sizeof(struct capture_record) + FRAME_HEADER)
            abort();
        free(reader->region);
        return 0;
    }
    reader->snap = reader->capture->snap;
    if (!reader->hostile) {
        ring_open(&reader->ring, (struct ring_shared *)(reader->region + OFFSET), config.size, config.max_message, 0);
        ring_attach_consumer(&reader->ring);
    }
    return 1;
}

/* Does the filter want it, told again in other words? */
static int expected(const struct capture_filter *filter, const struct frame *frame, uint32_t from, const struct port *to) {
    int port = 0, mac = 0;
    for (uint32_t i = 0; i < filter->port_count; i++)
        port |= filter->ports[i] == from || !to || filter->ports[i] == to->id;
    for (uint32_t i = 0; i < filter->mac_count; i++)
        mac |= !memcmp(filter->macs[i], frame->ethernet, 6) || !memcmp(filter->macs[i], frame->ethernet + 6, 6);
    return (port || !filter->by_port) && (mac || !filter->by_mac);
}

static void spoil(struct reader *reader) {
    uint64_t at = below(2) ? OFFSET + below(sizeof(struct ring_shared)) : below(REGION - 8);
    uint64_t value = below(2) ? next() : next() >> 40;
    memcpy(reader->region + at, &value, 8);
}

/* What is read must be the frame that was sent last, if it was wanted and had room. */
static void check(struct reader *reader, const struct frame *frame, uint32_t from, const struct port *to) {
    const struct capture_record *record = NULL;
    const void *message;
    uint32_t size = 0, kept = frame->size < reader->snap ? frame->size : reader->snap;
    int wanted = expected(&reader->filter, frame, from, to);
    uint64_t lost = reader->capture->counters.lost;
    if (reader->capture->counters.broken || lost > reader->lost + (uint64_t)wanted)
        abort();
    int missed = lost > reader->lost;
    reader->lost = lost;
    reader->wanted += (uint64_t)wanted;
    if (reader->capture->counters.frames + lost != reader->wanted)
        abort();
    if (below(4)) /* It looks now and then only: rings run full. */
        return;
    while (ring_peek(&reader->ring, &message, &size) == SHM_OK) {
        record = message;
        ring_release(&reader->ring);
    }
    if (!wanted || missed)
        return;
    if (!record || size != sizeof *record + kept || record->size != frame->size || record->from != from || record->lost != lost)
        abort();
    if (record->to != (to ? to->id : CAPTURE_MANY) || memcmp(record + 1, frame->ethernet, FRAME_HEADER))
        abort();
    if (memcmp((const uint8_t *)(record + 1) + FRAME_HEADER, bytes + FRAME_HEADER, kept - FRAME_HEADER))
        abort();
}

static void one_frame(struct reader *readers, int count) {
    struct port from = {.id = (uint32_t)below(4)}, to = {.id = (uint32_t)below(4)};
    struct frame frame = {.size = FRAME_HEADER + (uint32_t)below(below(3) ? 100 : MOST - FRAME_HEADER), .piece_count = 1};
    for (uint32_t i = 0; i < frame.size; i += 61)
        bytes[i] = (uint8_t)next();
    memset(bytes, 0, FRAME_HEADER);
    bytes[5] = (uint8_t)below(4);
    bytes[11] = (uint8_t)below(4);
    memcpy(frame.ethernet, bytes, FRAME_HEADER);
    frame.pieces[0] = (struct iovec){bytes, frame.size};
    const struct port *way = below(3) ? &to : NULL;
    if (tap)
        tap(tap_context, &frame, 1, &from, way);
    for (int i = 0; i < count; i++) {
        if (readers[i].hostile && !below(2))
            spoil(&readers[i]);
        if (!readers[i].hostile)
            check(&readers[i], &frame, from.id, way);
    }
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    uint64_t seed = strtoull(argv[1], NULL, 0), cases = strtoull(argv[2], NULL, 0), frames = 0;
    for (uint64_t number = 0; number < cases; number++) {
        state = mix(mix(seed) ^ number) | 1;
        struct captures *captures = captures_new(NULL);
        struct reader readers[CAPTURES + 2];
        int count = 0;
        for (int tries = (int)below(4); tries >= 0; tries--)
            count += open_reader(captures, &readers[count]);
        if (count && !tap)
            abort();
        for (int left = (int)below(200); left; left--, frames++)
            one_frame(readers, count);
        while (count > 1 && !below(3)) {
            capture_remove(captures, readers[--count].capture);
            free(readers[count].region);
            one_frame(readers, count);
        }
        captures_free(captures);
        if (tap)
            abort();
        while (count)
            free(readers[--count].region);
    }
    printf("%llu cases, %llu frames\n", (unsigned long long)cases, (unsigned long long)frames);
    return 0;
}
