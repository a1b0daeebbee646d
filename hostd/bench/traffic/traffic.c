/* traffic.c: see traffic.h. */
#define _GNU_SOURCE
#include "traffic.h"

#include <linux/virtio_ring.h>
#include <shm/ring.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BURST = 32, NUMBER_AT = 14, AHEAD = 16, ASK = 4, CLOCK_TURNS = 16 };
static const uint64_t PATIENCE_NS = 1000000000, GREETING_NS = 20000000000, GREETING_PAUSE_NS = 50000000, PIECE_NS = 4000000;

/* A frame with its header before it, as it is sent; the number is written to both of its ends. */
struct message {
    char bytes[TRAFFIC_HEADER + TRAFFIC_LONGEST];
    uint32_t size;
};

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void ring_bell(int bell) {
    uint64_t one = 1;
    if (write(bell, &one, sizeof one) < 0)
        return; /* It is full: it rings. */
}

/* Short ones in few steps, of which the last may overlap the one before. */
static inline void write_message(char *to, const struct message *message, uint64_t number) {
    if (message->size > 256)
        memcpy(to, message->bytes, message->size);
    for (uint32_t at = 0; message->size <= 256 && at + 16 < message->size; at += 16)
        __builtin_memcpy(to + at, message->bytes + at, 16);
    __builtin_memcpy(to + message->size - 16, message->bytes + message->size - 16, 16);
    memcpy(to + TRAFFIC_HEADER + NUMBER_AT, &number, sizeof number);
    memcpy(to + message->size - sizeof number, &number, sizeof number);
}

/*
 * The lines of a message are in the forwarder's cache: they are asked for all together, before each is waited for. Else the
 * client, whose lines all come from there, would be slower than the forwarder.
 */
static inline void ask_for(const char *at, uint32_t size) {
    for (uint32_t line = 0; line < size && line < ASK * SHM_LINE; line += SHM_LINE)
        __builtin_prefetch(at + line);
}

static inline void ask_to_write(char *at, uint32_t size) {
    for (uint32_t line = 0; line < size && line < ASK * SHM_LINE; line += SHM_LINE)
        __builtin_prefetch(at + line, 1);
}

/* A frame that came: 1 if it is one that is on its way. Those before it that did not come are lost. */
static inline int take_message(struct traffic *traffic, const char *from, uint32_t size, const struct message *message) {
    uint64_t first, last;
    if (size != message->size)
        return 0;
    memcpy(&first, from + TRAFFIC_HEADER + NUMBER_AT, sizeof first);
    memcpy(&last, from + size - sizeof last, sizeof last);
    if (first != last || first < traffic->next || first >= traffic->sent)
        return 0;
    traffic->lost += first - traffic->next;
    traffic->next = first + 1;
    traffic->received++;
    return 1;
}

/* --- queues --- */

static struct vring_desc *descriptors(const struct traffic_queue *queue) {
    return (struct vring_desc *)queue->desc;
}

/* As drivers do, an entry that is right already is left alone: its line stays where it is. */
static void offer(struct traffic_queue *queue, uint32_t head) {
    struct vring_avail *avail = (struct vring_avail *)queue->avail;
    uint16_t *entry = &avail->ring[queue->next_avail++ & (queue->size - 1)];
    if (*entry != head)
        *entry = (uint16_t)head;
}

static void describe(const struct traffic_queue *queue, uint32_t head, uint32_t size, uint16_t flags) {
    descriptors(queue)[head] =
        (struct vring_desc){.addr = queue->buffers_gpa + (uint64_t)head * queue->room, .len = size, .flags = flags};
}

static void publish(struct traffic_queue *queue) {
    struct vring_avail *avail = (struct vring_avail *)queue->avail;
    const struct vring_used *used = (const struct vring_used *)queue->used;
    __atomic_store_n(&avail->idx, queue->next_avail, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* The back end's wish is read after it (2.7.13.4). */
    if (!(__atomic_load_n(&used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY))
        ring_bell(queue->kick);
}

/* How many entries the back end has used since the last look. */
static uint32_t used_count(const struct traffic_queue *queue) {
    const struct vring_used *used = (const struct vring_used *)queue->used;
    return (uint16_t)(__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE) - queue->next_used);
}

static char *buffer(const struct traffic_queue *queue, uint32_t number) {
    return queue->buffers + (uint64_t)(number & (queue->size - 1)) * queue->room;
}

static const struct vring_used_elem *next_used(struct traffic_queue *queue) {
    const struct vring_used *used = (const struct vring_used *)queue->used;
    return &used->ring[queue->next_used++ & (queue->size - 1)];
}

void traffic_fill(struct traffic_queue *queue) {
    struct vring_avail *avail = (struct vring_avail *)queue->avail;
    avail->flags = VRING_AVAIL_F_NO_INTERRUPT; /* Whoever spins wants no calls. */
    for (uint32_t head = 0; head < queue->size; head++) {
        describe(queue, head, queue->room, VRING_DESC_F_WRITE);
        offer(queue, head);
    }
    publish(queue);
}

/* Buffers are used in the order in which they were offered, so those that are free are the next ones. */
static uint32_t queue_send(struct traffic *traffic, const struct message *message, uint32_t count) {
    struct traffic_queue *queue = traffic->transmit;
    ((struct vring_avail *)queue->avail)->flags = VRING_AVAIL_F_NO_INTERRUPT;
    for (uint32_t used = used_count(queue); used; used--)
        next_used(queue);
    uint32_t room = queue->size - (uint16_t)(queue->next_avail - queue->next_used);
    count = count < room ? count : room;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t head = queue->next_avail & (queue->size - 1);
        ask_to_write(buffer(queue, head + BURST / 2), message->size);
        write_message(buffer(queue, head), message, traffic->sent + i);
        describe(queue, head, message->size, 0);
        offer(queue, head);
    }
    if (count)
        publish(queue);
    return count;
}

static int64_t queue_take(struct traffic *traffic, const struct message *message) {
    struct traffic_queue *queue = traffic->receive;
    uint32_t count = used_count(queue);
    count = count < BURST ? count : BURST;
    for (uint32_t i = 0; i < count; i++)
        ask_for(buffer(queue, queue->next_used + i), message->size); /* As they were offered, they are used. */
    for (uint32_t i = 0; i < count; i++) {
        struct vring_used_elem element = *next_used(queue);
        if (element.id >= queue->size || !take_message(traffic, buffer(queue, element.id), element.len, message))
            return TRAFFIC_WRONG;
        describe(queue, element.id, queue->room, VRING_DESC_F_WRITE);
        offer(queue, element.id);
    }
    if (count)
        publish(queue);
    return count;
}

/* --- rings --- */

/*
 * As ring_commit and ring_release for each, but `tail`, `head` and whether the forwarder sleeps are seen to once a burst. The
 * ring's own fields are kept here meanwhile: else each byte that is written might have changed them. Lines that are read are
 * not asked for: they follow one another, which the processor foresees, and those not yet written would be taken away from
 * who writes them.
 */
static int64_t ring_send_some(struct traffic *traffic, struct ring *shared, const struct message *message, uint32_t count) {
    struct ring ring = *shared;
    for (uint32_t i = 0; i < count; i++) {
        void *place;
        int failed = ring_reserve(&ring, message->size, &place);
        if (failed == SHM_FULL) {
            count = i;
            break;
        }
        if (failed)
            return TRAFFIC_RING;
        ring_blank(&ring, ring.position + ring.span);
        write_message(place, message, traffic->sent + i);
        ring_publish(&ring, ring.position, message->size);
        ring.position += ring.span;
        ask_to_write((char *)ring_header(&ring, ring.position + AHEAD), message->size);
    }
    shm_store64(&ring.shared->tail, ring.position);
    *shared = ring;
    if (count && shm_must_ring(ring.data_wait, ring.flags))
        ring_bell(traffic->out_bell);
    return count;
}

static int64_t ring_take(struct traffic *traffic, struct ring *shared, const struct message *message) {
    struct ring ring = *shared;
    uint32_t count = 0;
    for (; count < BURST; count++) {
        const void *place;
        uint32_t size;
        int failed = ring_peek(&ring, &place, &size);
        if (failed == SHM_EMPTY)
            break;
        if (failed)
            return TRAFFIC_RING;
        if (!take_message(traffic, place, size, message))
            return TRAFFIC_WRONG;
        ring.position += ring.span;
    }
    ring.span = 0;
    *shared = ring;
    if (count && ring_release(shared))
        ring_bell(traffic->in_bell);
    return count;
}

/* --- both --- */

struct ends {
    struct ring out, in;
};

static int open_ends(const struct traffic *traffic, struct ends *ends) {
    if (traffic->transmit)
        return TRAFFIC_OK;
    if (ring_open(&ends->out, traffic->out_ring, traffic->ring_size, traffic->max_message, traffic->ring_flags) ||
        ring_open(&ends->in, traffic->in_ring, traffic->ring_size, traffic->max_message, traffic->ring_flags) ||
        ring_attach_producer(&ends->out))
        return TRAFFIC_RING;
    ring_attach_consumer(&ends->in);
    return TRAFFIC_OK;
}

/* What is looked at after the frames were sent is asked for before. */
static void foresee(const struct traffic *traffic, const struct ends *ends) {
    if (!traffic->receive) {
        ask_for((const char *)ring_header(&ends->in, ends->in.position), AHEAD * SHM_LINE);
        return;
    }
    __builtin_prefetch(&((const struct vring_used *)traffic->receive->used)->idx);
    __builtin_prefetch(buffer(traffic->receive, traffic->receive->next_used));
}

/* One look at both ends, at most `most` frames sent: how many frames there were, sent and taken, or what was wrong. */
static int64_t step(struct traffic *traffic, struct ends *ends, const struct message *message, uint32_t most) {
    uint64_t room = traffic->window - (traffic->sent - traffic->next);
    uint32_t count = room < most ? (uint32_t)room : most;
    int64_t sent = 0;
    foresee(traffic, ends);
    if (count)
        sent = traffic->transmit ? queue_send(traffic, message, count)
                                 : ring_send_some(traffic, &ends->out, message, count);
    if (sent < 0)
        return sent;
    traffic->sent += (uint64_t)sent;
    int64_t taken = traffic->receive ? queue_take(traffic, message) : ring_take(traffic, &ends->in, message);
    return taken < 0 ? taken : sent + taken;
}

/*
 * Steps until `end_ns`, or with nothing to be sent until all has come. Idle time is added to *idle_ns. The clock is looked at
 * now and then, and when there is nothing else to do.
 */
static int64_t steps(struct traffic *traffic, struct ends *ends, const struct message *message, uint32_t most,
                     uint64_t end_ns, uint64_t *idle_ns) {
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    int64_t before = 1;
    for (uint32_t turn = 1; now < end_ns && (most || traffic->sent != traffic->next); turn++) {
        int64_t moved = step(traffic, ends, message, most);
        if (moved < 0)
            return moved;
        if (!moved || turn % CLOCK_TURNS == 0) {
            uint64_t last = now;
            now = clock_ns(CLOCK_MONOTONIC);
            if (!moved && !before)
                *idle_ns += now - last;
        }
        before = moved;
    }
    return TRAFFIC_OK;
}

/* Takes what is on its way, for a while; what doesn't come is lost. */
static int64_t drain(struct traffic *traffic, struct ends *ends, const struct message *message, uint64_t patience_ns) {
    uint64_t ignored = 0;
    int64_t state = steps(traffic, ends, message, 0, clock_ns(CLOCK_MONOTONIC) + patience_ns, &ignored);
    traffic->lost += traffic->sent - traffic->next;
    return state;
}

/* A forwarder may be starting still: sends a frame now and then until one has come. What was lost on the way is not counted. */
static int64_t greet(struct traffic *traffic, struct ends *ends, const struct message *message) {
    uint64_t end_ns = clock_ns(CLOCK_MONOTONIC) + GREETING_NS, ignored = 0, before = traffic->received;
    while (traffic->received == before) {
        int64_t state = step(traffic, ends, message, 1);
        if (state >= 0)
            state = steps(traffic, ends, message, 0, clock_ns(CLOCK_MONOTONIC) + GREETING_PAUSE_NS, &ignored);
        if (state < 0)
            return state;
        if (clock_ns(CLOCK_MONOTONIC) > end_ns)
            return TRAFFIC_SILENT;
    }
    int64_t state = drain(traffic, ends, message, PATIENCE_NS);
    traffic->next = traffic->sent;
    traffic->lost = 0;
    return state;
}

static void add(struct traffic_count *sum, const struct traffic_count *piece) {
    sum->frames += piece->frames;
    sum->wall_ns += piece->wall_ns;
    sum->forwarder_ns += piece->forwarder_ns;
    sum->idle_ns += piece->idle_ns;
}

/*
 * Had both their processors to themselves? Who is waited for by the other one spins, so what it uses says nothing then. More
 * than all of the time can't be: where a clock says so, it is wrong.
 */
static int is_quiet(const struct traffic_count *piece, uint64_t own_ns) {
    uint64_t slack = piece->wall_ns / 50, least = piece->wall_ns - slack, most = piece->wall_ns + slack;
    return own_ns >= least && piece->forwarder_ns >= least && piece->forwarder_ns <= most;
}

static int64_t measure(struct traffic *traffic, struct ends *ends, const struct message *message, clockid_t forwarder,
                       uint64_t ns, uint64_t most_ns, struct traffic_result *result) {
    /* On a machine with more to do, who forwards may wait for its turn for a while. */
    while (result->quiet.wall_ns < ns &&
           result->all.wall_ns < (result->all.frames ? most_ns : most_ns + PATIENCE_NS)) {
        struct traffic_count piece = {0};
        uint64_t begin = clock_ns(CLOCK_MONOTONIC), own = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        uint64_t forwarder_begin = clock_ns(forwarder), before = traffic->received;
        int64_t state = steps(traffic, ends, message, BURST, begin + PIECE_NS, &piece.idle_ns);
        if (state)
            return state;
        piece.frames = traffic->received - before;
        piece.forwarder_ns = clock_ns(forwarder) - forwarder_begin;
        own = clock_ns(CLOCK_THREAD_CPUTIME_ID) - own;
        piece.wall_ns = clock_ns(CLOCK_MONOTONIC) - begin;
        add(&result->all, &piece);
        if (is_quiet(&piece, own))
            add(&result->quiet, &piece);
    }
    return TRAFFIC_OK;
}

int traffic_run(struct traffic *traffic, int forwarder, uint64_t warm_ns, uint64_t ns, uint64_t most_ns,
                struct traffic_result *result) {
    struct message message = {.size = TRAFFIC_HEADER + traffic->frame_size};
    struct ends ends;
    clockid_t clock;
    uint64_t ignored = 0;
    *result = (struct traffic_result){0};
    memcpy(message.bytes + TRAFFIC_HEADER, traffic->ethernet, sizeof traffic->ethernet);
    if (clock_getcpuclockid(forwarder, &clock))
        return TRAFFIC_CLOCK;
    int64_t state = open_ends(traffic, &ends);
    if (!state)
        state = greet(traffic, &ends, &message);
    if (!state)
        state = steps(traffic, &ends, &message, BURST, clock_ns(CLOCK_MONOTONIC) + warm_ns, &ignored);
    if (!state)
        state = measure(traffic, &ends, &message, clock, ns, most_ns, result);
    if (!state)
        state = drain(traffic, &ends, &message, PATIENCE_NS);
    result->lost = traffic->lost;
    return (int)state;
}
