/*
 * stream_guest.c: one of the guests of `hostd bench throughput`. Does the jobs it is told, and checks every message.
 *
 * Arguments: this guest's index, how many guests there are. Channels: jobs, results; next-I (guest I to the next one),
 * large and place (guest 0 to 1), hub and hub-large (many to guest 0), leaf-I (guest 0 to I), feed and feed-large
 * (broadcast of guest 0), acks (its readers to guest 0), inbox-I (all to guest I).
 */
#include "guest.h"
#include "stream_job.h"

#define MOST 64            /* guests */
#define LONGEST (1 << 20)  /* bytes of a message */
#define SMALL 8192         /* messages up to so many bytes go by the small channels */

static struct channel jobs, results, next, before, large, place, hub, hub_large, leaf[MOST], feed, feed_large, acks,
    inbox[MOST];
static uint64_t self, guests;
static struct job job;
static unsigned char *message;
static uint64_t base_ns, base_ticks;

/* ---- channels ---------------------------------------------------------------------------------------------------------- */

static void open_if_mine(struct channel *channel, const char *name, long number) {
    char full[GUEST_NAME_SIZE];
    size_t at = strlen(name);
    memcpy(full, name, at + 1);
    if (number >= 10)
        full[at++] = (char)('0' + number / 10);
    if (number >= 0)
        full[at++] = (char)('0' + number % 10);
    full[at] = 0;
    int failed = channel_open(channel, full);
    if (failed != CHANNEL_UNKNOWN)
        channel_must(channel, failed);
}

static void open_all(void) {
    channel_must_open(&jobs, "jobs");
    channel_must_open(&results, "results");
    channel_spin(&jobs, 0);
    open_if_mine(&next, "next-", (long)self);
    open_if_mine(&before, "next-", (long)((self + guests - 1) % guests));
    open_if_mine(&large, "large", -1);
    open_if_mine(&place, "place", -1);
    open_if_mine(&hub, "hub", -1);
    open_if_mine(&hub_large, "hub-large", -1);
    open_if_mine(&feed, "feed", -1);
    open_if_mine(&feed_large, "feed-large", -1);
    open_if_mine(&acks, "acks", -1);
    for (uint64_t i = 0; i < guests; i++) {
        open_if_mine(&leaf[i], "leaf-", (long)i);
        open_if_mine(&inbox[i], "inbox-", (long)i);
    }
}

static void spin_all(uint64_t ns) {
    struct channel *all[] = {&next, &before, &large, &place, &hub, &hub_large, &feed, &feed_large, &acks};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        channel_spin(all[i], ns);
    for (uint64_t i = 0; i < guests; i++) {
        channel_spin(&leaf[i], ns);
        channel_spin(&inbox[i], ns);
    }
}

static struct channel *by_size(struct channel *small, struct channel *big) {
    return job.size <= SMALL ? small : big;
}

/* ---- messages ---------------------------------------------------------------------------------------------------------- */

static inline void put_from(unsigned char *data, uint64_t size, struct channel *channel, uint64_t number) {
    memcpy(data, &number, sizeof number);
    channel_must(channel, channel_send(channel, data, size, GUEST_NO_LIMIT));
}

static inline uint64_t take_into(unsigned char *data, uint64_t size, struct channel *channel) {
    uint64_t number;
    int64_t got = channel_receive(channel, data, LONGEST, GUEST_NO_LIMIT);
    channel_must(channel, got);
    if (__builtin_expect((uint64_t)got != size, 0))
        guest_fail("channel %s: a message of %ld bytes, not %lu", channel->end->name, got, size);
    memcpy(&number, data, sizeof number);
    return number;
}

static inline void put(struct channel *channel, uint64_t number) {
    put_from(message, job.size, channel, number);
}

static inline uint64_t take(struct channel *channel) {
    return take_into(message, job.size, channel);
}

static inline void expect(const struct channel *channel, uint64_t number, uint64_t wanted) {
    if (__builtin_expect(number != wanted, 0))
        guest_fail("channel %s: message %lx came, %lx was due", channel->end->name, number, wanted);
}

/* Takes the next message, whoever sent it; counts for each sender. Returns the sender. */
static inline uint64_t take_any(struct channel *channel, uint64_t *seen) {
    uint64_t number = take(channel), sender = number >> 56;
    if (sender >= guests)
        guest_fail("channel %s: message %lx came from nobody", channel->end->name, number);
    expect(channel, number, NUMBER(sender, seen[sender]++));
    return sender;
}

/* The clock is the host's, so that guests' times compare; it is read once for a job, the counter says the rest. */
static uint64_t at_ns(uint64_t ticks) {
    return base_ns + guest_ticks_to_ns(ticks - base_ticks);
}

static struct job_result done(uint64_t messages, uint64_t start, uint64_t end) {
    return (struct job_result){.guest = self, .messages = messages, .start_ns = at_ns(start), .end_ns = at_ns(end)};
}

static const struct job_result nothing;

/* ---- jobs -------------------------------------------------------------------------------------------------------------- */

/* What a loop that is measured needs is in its own variables: a global would be read anew for every message. */
static struct job_result send_all(struct channel *channel) {
    unsigned char *data = message;
    uint64_t size = job.size, count = job.count, sender = self;
    for (uint64_t i = 0; i < count; i++)
        put_from(data, size, channel, NUMBER(sender, i));
    return nothing;
}

static struct job_result receive_all(struct channel *channel, uint64_t sender) {
    unsigned char *data = message;
    uint64_t size = job.size, count = job.count;
    expect(channel, take(channel), NUMBER(sender, 0));
    uint64_t start = guest_ticks();
    for (uint64_t i = 1; i < count; i++)
        expect(channel, take_into(data, size, channel), NUMBER(sender, i));
    return done(count - 1, start, guest_ticks());
}

static struct job_result spsc(void) {
    if (self == 0)
        return send_all(by_size(&next, &large));
    return self == 1 ? receive_all(by_size(&before, &large), 0) : nothing;
}

static struct job_result pairs(void) {
    if (self % 2 == 0)
        return self + 1 < guests ? send_all(&next) : nothing;
    return receive_all(&before, self - 1);
}

static struct job_result make_in_place(void) {
    for (uint64_t i = 0; i < job.count; i++) {
        void *payload;
        channel_must(&place, channel_reserve(&place, job.size, &payload, GUEST_NO_LIMIT));
        memcpy(payload, &i, sizeof i);
        channel_commit(&place, job.size);
    }
    return nothing;
}

static struct job_result look_in_place(void) {
    uint64_t start = 0;
    for (uint64_t i = 0; i < job.count; i++) {
        const void *payload;
        uint64_t number;
        int64_t size = channel_peek(&place, &payload, GUEST_NO_LIMIT);
        channel_must(&place, size);
        memcpy(&number, payload, sizeof number);
        expect(&place, number | (uint64_t)(size != job.size) << 63, i);
        channel_release(&place);
        if (!start)
            start = guest_ticks();
    }
    return done(job.count - 1, start, guest_ticks());
}

static struct job_result in_place(void) {
    return self == 0 ? make_in_place() : self == 1 ? look_in_place() : nothing;
}

static struct job_result many(void) {
    struct channel *channel = by_size(&hub, &hub_large);
    uint64_t seen[MOST] = {0}, all = job.count * (guests - 1);
    if (self)
        return send_all(channel);
    take_any(channel, seen);
    uint64_t start = guest_ticks();
    for (uint64_t i = 1; i < all; i++)
        take_any(channel, seen);
    return done(all - 1, start, guest_ticks());
}

/* The writer of a broadcast waits for nobody, so its readers say how far they are: at most two windows lie between. */
static struct job_result broadcast(void) {
    struct channel *channel = by_size(&feed, &feed_large);
    uint64_t seen[MOST] = {0}, windows = job.count / job.window, start = 0, ack;
    for (uint64_t w = 0, i = 0; w < windows; w++) {
        for (uint64_t last = i + job.window; i < last; i++) {
            if (self == 0)
                put(channel, i);
            else
                expect(channel, take(channel), i);
            if (!start)
                start = guest_ticks();
        }
        ack = self;
        if (self)
            channel_must(&acks, channel_send(&acks, &ack, sizeof ack, GUEST_NO_LIMIT));
        for (uint64_t reader = 1; self == 0 && reader < guests; reader++)
            while (seen[reader] < w) {
                channel_must(&acks, channel_receive(&acks, &ack, sizeof ack, GUEST_NO_LIMIT));
                seen[ack % MOST]++;
            }
    }
    for (uint64_t reader = 1; self == 0 && reader < guests; reader++)
        while (seen[reader] < windows) {
            channel_must(&acks, channel_receive(&acks, &ack, sizeof ack, GUEST_NO_LIMIT));
            seen[ack % MOST]++;
        }
    if (self && channel_lost(channel))
        guest_fail("channel %s: %lu messages were lost", channel->end->name, channel_lost(channel));
    return self ? done(job.count - 1, start, guest_ticks()) : nothing;
}

/* Guest 0 has at most a window on its way round, which any ring holds: nobody waits for room. */
static struct job_result ring(void) {
    uint64_t start = guest_ticks(), sent = 0, received = 0;
    if (self) {
        for (uint64_t i = 0; i < job.count; i++) {
            expect(&before, take(&before), i);
            put(&next, i);
        }
        return done(job.count, start, guest_ticks());
    }
    while (received < job.count) {
        for (; sent < job.count && sent - received < job.window; sent++)
            put(&next, sent);
        for (uint64_t i = 0; i < (job.window + 1) / 2 && received < sent; i++, received++)
            expect(&before, take(&before), received);
    }
    return done(job.count, start, guest_ticks());
}

static struct job_result star(void) {
    uint64_t seen[MOST] = {0}, start = guest_ticks(), sent = 0, received = 0;
    if (self == 0) {
        for (uint64_t i = 0; i < job.count * (guests - 1); i++) {
            uint64_t asker = take_any(&hub, seen);
            put(&leaf[asker], seen[asker] - 1);
        }
        return done(job.count * (guests - 1), start, guest_ticks());
    }
    while (received < job.count) {
        for (; sent < job.count && sent - received < job.window; sent++)
            put(&hub, NUMBER(self, sent));
        for (uint64_t i = 0; i < (job.window + 1) / 2 && received < sent; i++, received++)
            expect(&leaf[self], take(&leaf[self]), received);
    }
    return done(job.count, start, guest_ticks());
}

/* Nobody is more than a window ahead of who is last, and a lane holds two. */
static struct job_result all(void) {
    uint64_t seen[MOST] = {0}, start = guest_ticks();
    for (uint64_t first = 0; first < job.count; first += job.window) {
        for (uint64_t other = 1; other < guests; other++)
            for (uint64_t i = 0; i < job.window; i++)
                put(&inbox[(self + other) % guests], NUMBER(self, first + i));
        for (uint64_t i = 0; i < job.window * (guests - 1); i++)
            take_any(&inbox[self], seen);
    }
    return done(job.count * (guests - 1), start, guest_ticks());
}

static struct job_result (*const kinds[JOB_KINDS])(void) = {
    [JOB_SPSC] = spsc, [JOB_IN_PLACE] = in_place, [JOB_MANY] = many, [JOB_BROADCAST] = broadcast,
    [JOB_PAIRS] = pairs, [JOB_RING] = ring, [JOB_STAR] = star, [JOB_ALL] = all,
};

int main(int argc, char **argv) {
    if (argc != 3)
        guest_fail("usage: %s INDEX GUESTS", argv[0]);
    self = strtoul(argv[1], NULL, 10);
    guests = strtoul(argv[2], NULL, 10);
    if (guests < 2 || guests > MOST || self >= guests)
        guest_fail("2 to %d guests, and an index below that", MOST);
    message = guest_alloc(LONGEST, 4096);
    if (!message)
        guest_fail("no memory for a message of %d bytes; give this guest more memory", LONGEST);
    memset(message, 1, LONGEST);
    open_all();
    for (;;) {
        int64_t size = channel_receive(&jobs, &job, sizeof job, GUEST_NO_LIMIT);
        if (size == CHANNEL_CLOSED)
            return 0;
        channel_must(&jobs, size);
        if (size != sizeof job || job.kind >= JOB_KINDS || job.size > LONGEST || job.size < 8 || job.count < 2 || !job.window)
            guest_fail("channel jobs: no job that can be done");
        spin_all(job.spin_ns);
        base_ns = guest_now_ns();
        base_ticks = guest_ticks();
        struct job_result result = kinds[job.kind]();
        result.guest = self;
        channel_must(&results, channel_send(&results, &result, sizeof result, GUEST_NO_LIMIT));
    }
}
