/*
 * bounce_guest.c: one of the guests of `hostd bench latency`. Bounces messages as it is told, and checks each of them.
 *
 * Arguments: this guest's index, how many guests there are. Channels: jobs, results; ping and ping-large (guest 0 to 1), pong
 * and pong-large (back); hub (many to guest 0), leaf-I (guest 0 to I); feed (broadcast of guest 0), acks (its readers to him).
 */
#include "guest.h"
#include "bounce_job.h"

#define MOST 64             /* guests */
#define LONGEST (1 << 20)   /* bytes of a message */
#define SMALL 65536         /* messages up to so many bytes go by the small channels */
#define SAMPLES (1 << 20)   /* of one job */
#define OUTSTANDING 64      /* questions by the clock that wait for an answer, at most */
#define OUTSTANDING_BYTES 65536

static struct channel jobs, results, ping, pong, ping_large, pong_large, hub, leaf[MOST], feed, acks;
static uint64_t self, guests;
static struct job job;
static struct job_result result;
static unsigned char *message, *answer;
static uint64_t *samples, taken;
static uint64_t serial; /* of the job */

/* ---- channels ---------------------------------------------------------------------------------------------------------- */

static void open_if_mine(struct channel *channel, const char *name) {
    int failed = channel_open(channel, name);
    if (failed != CHANNEL_UNKNOWN)
        channel_must(channel, failed);
}

static void open_leaf(uint64_t number) {
    char name[] = "leaf-\0\0";
    size_t at = strlen(name);
    if (number >= 10)
        name[at++] = (char)('0' + number / 10);
    name[at] = (char)('0' + number % 10);
    open_if_mine(&leaf[number], name);
}

static void open_all(void) {
    channel_must_open(&jobs, "jobs");
    channel_must_open(&results, "results");
    channel_spin(&jobs, 0);
    open_if_mine(&ping, "ping");
    open_if_mine(&pong, "pong");
    open_if_mine(&ping_large, "ping-large");
    open_if_mine(&pong_large, "pong-large");
    open_if_mine(&hub, "hub");
    open_if_mine(&feed, "feed");
    open_if_mine(&acks, "acks");
    for (uint64_t i = 1; i < guests; i++)
        open_leaf(i);
}

static void spin_all(uint64_t ns) {
    struct channel *all[] = {&ping, &pong, &ping_large, &pong_large, &hub, &feed, &acks};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        channel_spin(all[i], ns);
    for (uint64_t i = 0; i < guests; i++)
        channel_spin(&leaf[i], ns);
}

/* ---- messages ---------------------------------------------------------------------------------------------------------- */

static inline uint64_t numbered(uint64_t sender, uint64_t number) {
    return NUMBER(sender, serial << 32 | number);
}

/* Where the next number is known, its message is made before it is due: a copy of bytes just written waits for them. */
static inline void make(uint64_t number) {
    memcpy(message + job.size - sizeof number, &number, sizeof number);
    memcpy(message, &number, sizeof number);
}

static inline void send(struct channel *channel) {
    channel_must(channel, channel_send(channel, message, job.size, GUEST_NO_LIMIT));
}

static inline void put(struct channel *channel, uint64_t number) {
    make(number);
    send(channel);
}

static inline uint64_t check(const struct channel *channel, int64_t size) {
    uint64_t first, last;
    channel_must(channel, size);
    memcpy(&first, answer, sizeof first);
    memcpy(&last, answer + job.size - sizeof last, sizeof last);
    if (__builtin_expect((uint64_t)size != job.size || (job.size >= 2 * sizeof first && first != last), 0))
        guest_fail("channel %s: a message of %ld bytes from %lx to %lx, not one of %u", channel->end->name, size, first, last,
                   job.size);
    return first;
}

static inline uint64_t take(struct channel *channel) {
    return check(channel, channel_receive(channel, answer, LONGEST, GUEST_NO_LIMIT));
}

static inline void expect(const struct channel *channel, uint64_t number, uint64_t wanted) {
    if (__builtin_expect(number != wanted, 0))
        guest_fail("channel %s: message %lx came, %lx was due", channel->end->name, number, wanted);
}

/* ---- those who ask ----------------------------------------------------------------------------------------------------- */

/* The next question when the answer is there: a sample is the time between two answers. */
static void ask_in_turn(struct channel *to, struct channel *from) {
    uint64_t before = guest_ticks();
    make(numbered(self, 0));
    for (uint64_t i = 0; i < job.warm_up + job.count; i++) {
        send(to);
        make(numbered(self, i + 1));
        expect(from, take(from), numbered(self, i));
        uint64_t now = guest_ticks();
        if (i >= job.warm_up)
            samples[i - job.warm_up] = now - before;
        before = now;
    }
    taken = job.count;
}

/*
 * Questions by the clock, answered or not: a sample counts from when its question was due, so one that had to wait, for this
 * guest or behind others, shows as slow as it was. At most a window is on its way, which any ring holds.
 */
static void ask_by_clock(struct channel *to, struct channel *from) {
    uint64_t all = job.warm_up + job.count, sent = 0, got = 0, window = OUTSTANDING_BYTES / job.size;
    uint64_t interval = guest_ns_to_ticks(job.interval_ns), start = guest_ticks() + interval;
    window = window > OUTSTANDING ? OUTSTANDING : window ? window : 1;
    while (got < all) {
        uint64_t now = guest_ticks(), due = start + sent * interval;
        int may_send = sent < all && sent - got < window;
        if (may_send && (int64_t)(now - due) >= 0) {
            put(to, numbered(self, sent));
            sent++;
            continue;
        }
        if (from->spin_ticks && !ring_has_data(&from->ring)) {
            shm_pause();
            continue;
        }
        int64_t size = channel_receive(from, answer, LONGEST, may_send ? guest_ticks_to_ns(due - now) : GUEST_NO_LIMIT);
        if (size == CHANNEL_TIMEOUT)
            continue;
        expect(from, check(from, size), numbered(self, got));
        if (got >= job.warm_up)
            samples[got - job.warm_up] = guest_ticks() - (start + got * interval);
        got++;
    }
    taken = job.count;
}

static void ask(struct channel *to, struct channel *from) {
    if (job.interval_ns)
        ask_by_clock(to, from);
    else
        ask_in_turn(to, from);
}

/* ---- jobs -------------------------------------------------------------------------------------------------------------- */

static void pair(void) {
    int large = job.size > SMALL;
    struct channel *there = large ? &ping_large : &ping, *back = large ? &pong_large : &pong;
    if (self == 0)
        ask(there, back);
    else if (self == 1)
        for (uint64_t i = 0; i < job.warm_up + job.count; i++) {
            make(numbered(0, i));
            expect(there, take(there), numbered(0, i));
            send(back);
        }
}

static void star(void) {
    static uint64_t seen[MOST];
    if (self) {
        ask(&hub, &leaf[self]);
        return;
    }
    memset(seen, 0, sizeof seen);
    for (uint64_t i = 0; i < (job.warm_up + job.count) * (job.users - 1); i++) {
        uint64_t number = take(&hub), sender = number >> 56;
        if (!sender || sender >= job.users)
            guest_fail("channel hub: message %lx came from nobody", number);
        expect(&hub, number, numbered(sender, seen[sender]++));
        put(&leaf[sender], number);
    }
}

/* Passes over messages of jobs in which this guest had no part; of those it may have lost some. */
static uint64_t first_of_job(void) {
    for (;;) {
        int64_t size = channel_receive(&feed, answer, LONGEST, GUEST_NO_LIMIT);
        channel_must(&feed, size);
        uint64_t number;
        memcpy(&number, answer, sizeof number);
        if (number >> 32 == serial)
            return check(&feed, size);
    }
}

static void broadcast(void) {
    if (self) {
        uint64_t number = first_of_job(), lost = channel_lost(&feed);
        for (uint64_t i = 0; i < job.warm_up + job.count; i++) {
            expect(&feed, i ? take(&feed) : number, numbered(0, i));
            put(&acks, numbered(self, i));
        }
        if (channel_lost(&feed) != lost)
            guest_fail("channel feed: %lu messages were lost", channel_lost(&feed) - lost);
        return;
    }
    uint64_t before = guest_ticks();
    for (uint64_t i = 0; i < job.warm_up + job.count; i++) {
        uint64_t missing = ((uint64_t)1 << job.users) - 2;
        for (put(&feed, numbered(0, i)); missing;) {
            uint64_t number = take(&acks), sender = number >> 56;
            if (sender >= job.users || !(missing >> sender & 1))
                guest_fail("channel acks: message %lx came from nobody, or a second time", number);
            expect(&acks, number, numbered(sender, i));
            missing &= ~((uint64_t)1 << sender);
        }
        uint64_t now = guest_ticks();
        if (i >= job.warm_up)
            samples[i - job.warm_up] = now - before;
        before = now;
    }
    taken = job.count;
}

static void exits(void) {
    if (self)
        return;
    for (uint64_t i = 0; i < job.warm_up + job.count; i++) {
        uint64_t before = guest_ticks();
        guest_wait(NULL, 0, 0);
        if (i >= job.warm_up)
            samples[i - job.warm_up] = guest_ticks() - before;
    }
    taken = job.count;
}

static void (*const kinds[JOB_KINDS])(void) = {
    [JOB_PAIR] = pair, [JOB_STAR] = star, [JOB_BROADCAST] = broadcast, [JOB_EXIT] = exits};

static void answer_job(void) {
    uint64_t done = 0;
    do {
        uint64_t part = taken - done < RESULT_SAMPLES ? taken - done : RESULT_SAMPLES;
        memcpy(result.ticks, samples + done, part * sizeof *samples);
        done += part;
        result.guest = self;
        result.left = taken - done;
        size_t size = sizeof result - sizeof result.ticks + part * sizeof *samples;
        channel_must(&results, channel_send(&results, &result, size, GUEST_NO_LIMIT));
    } while (done < taken);
}

/* Checked: everything that memory or a loop goes by. */
static int possible(int64_t size) {
    return size == sizeof job && job.kind < JOB_KINDS && job.size >= 8 && job.size <= LONGEST && job.users >= 2 &&
           job.users <= guests && job.count && job.count <= SAMPLES && (job.kind == JOB_PAIR || job.size <= SMALL);
}

int main(int argc, char **argv) {
    if (argc != 3)
        guest_fail("usage: %s INDEX GUESTS", argv[0]);
    self = strtoul(argv[1], NULL, 10);
    guests = strtoul(argv[2], NULL, 10);
    if (guests < 2 || guests >= MOST || self >= guests)
        guest_fail("2 to %d guests, and an index below that", MOST - 1);
    message = guest_alloc(LONGEST, 4096);
    answer = guest_alloc(LONGEST, 4096);
    samples = guest_alloc(SAMPLES * sizeof *samples, 4096);
    if (!message || !answer || !samples)
        guest_fail("no memory for %d samples; give this guest more memory", SAMPLES);
    memset(message, 1, LONGEST);
    memset(answer, 1, LONGEST);
    open_all();
    for (;;) {
        int64_t size = channel_receive(&jobs, &job, sizeof job, GUEST_NO_LIMIT);
        if (size == CHANNEL_CLOSED)
            return 0;
        channel_must(&jobs, size);
        if (!possible(size))
            guest_fail("channel jobs: no job that can be done");
        spin_all(job.spin_ns);
        taken = 0;
        serial = (serial + 1) & 0xffffff;
        if (self < job.users)
            kinds[job.kind]();
        answer_job();
    }
}
