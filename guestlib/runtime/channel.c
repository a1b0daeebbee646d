/* channel.c: waiting, over the rings that never wait. */
#include "guest.h"
#include "call.h"
#include "ends.h"

static const uint64_t SPIN_NS = 20000;
static const unsigned LOOKS = 1024; /* spins between two looks at clock and peer */
static const uint64_t PATIENCE_NS = 1000000000; /* a peer that died before it rang is replaced by one that may not know */

/* ---- opening ----------------------------------------------------------------------------------------------------------- */

static const struct guest_channel *find(const char *name) {
    const struct guest_info *info = guest_info();
    const struct guest_channel *ends = (const struct guest_channel *)((const char *)info + info->channels.offset);
    for (uint32_t i = 0; i < info->channels.size; i++)
        if (strcmp(ends[i].name, name) == 0)
            return &ends[i];
    return NULL;
}

static void *shared(const struct guest_channel *end) {
    const struct guest_info *info = guest_info();
    const struct guest_region *regions = (const struct guest_region *)((const char *)info + info->regions.offset);
    return (void *)(regions[end->region].address + end->offset);
}

static int is_receiver(const struct channel *channel) {
    return channel->end->role == GUEST_ROLE_RECEIVE;
}

static int open_ring(struct ring *ring, const struct guest_channel *end) {
    int failed = end->kind == SHM_MPSC ? mpsc_open_lane(ring, shared(end), end->size, end->max_message, end->lane, end->lanes,
                                                        end->flags)
                                       : ring_open(ring, shared(end), end->size, end->max_message, end->flags);
    if (failed)
        return failed;
    if (end->role == GUEST_ROLE_SEND)
        return ring_attach_producer(ring);
    ring_attach_consumer(ring);
    return SHM_OK;
}

static int open_plain(struct channel *channel) {
    int failed = open_ring(&channel->ring, channel->end);
    channel->receives = !failed && is_receiver(channel);
    channel->sends = !failed && !channel->receives;
    return failed;
}

static int open_mpsc(struct mpsc *mpsc, const struct guest_channel *end) {
    struct ring *lanes = guest_alloc(end->lanes * sizeof *lanes, 64);
    if (!lanes)
        return SHM_E_CONFIG;
    return mpsc_attach_consumer(mpsc, shared(end), end->size, end->max_message, end->lanes, end->flags, lanes);
}

static int open_broadcast(struct broadcast *ring, const struct guest_channel *end) {
    int failed = broadcast_open(ring, shared(end), end->size, end->max_message, end->flags);
    if (failed)
        return failed;
    if (end->role == GUEST_ROLE_SEND)
        return broadcast_attach_writer(ring);
    broadcast_attach_reader(ring);
    return SHM_OK;
}

int channel_open(struct channel *channel, const char *name) {
    const struct guest_channel *end = find(name);
    if (end)
        return channel_open_end(channel, end);
    memset(channel, 0, sizeof *channel);
    return CHANNEL_UNKNOWN;
}

int channel_open_end(struct channel *channel, const struct guest_channel *end) {
    memset(channel, 0, sizeof *channel);
    channel->end = end;
    channel_spin(channel, SPIN_NS);
    switch (end->kind) {
    case SHM_BROADCAST:
        return open_broadcast(&channel->broadcast, end);
    case SHM_BARRIER:
        return barrier_attach(&channel->barrier, shared(end), end->lanes, end->lane, end->flags);
    case SHM_MPSC:
        if (is_receiver(channel))
            return open_mpsc(&channel->mpsc, end);
        /* fall through */
    default:
        return open_plain(channel);
    }
}

void channel_spin(struct channel *channel, uint64_t ns) {
    channel->spin_ticks = ns == CHANNEL_SPIN_ALWAYS ? UINT64_MAX : guest_ns_to_ticks(ns);
    channel->looks = ns ? LOOKS : 0;
}

static void ring_for(uint32_t bell) {
    if (bell != SHM_NO_BELL)
        guest_ring(bell);
}

/* After a send or receive: tells the other side. */
void channel_ring(const struct channel *channel) {
    ring_for(is_receiver(channel) ? channel->end->space_bell : channel->end->data_bell);
}

void channel_close(struct channel *channel) {
    const struct guest_channel *end = channel->end;
    switch (end->kind) {
    case SHM_BARRIER:
        barrier_close(&channel->barrier);
        break;
    case SHM_BROADCAST:
        if (!is_receiver(channel))
            shm_store32(&channel->broadcast.shared->writer, SHM_CLOSED);
        break;
    case SHM_MPSC:
        if (is_receiver(channel)) {
            for (uint32_t i = 0; i < end->lanes; i++)
                ring_close_consumer(&channel->mpsc.lanes[i]);
            break;
        }
        /* fall through */
    default:
        if (is_receiver(channel))
            ring_close_consumer(&channel->ring);
        else
            ring_close_producer(&channel->ring);
    }
    channel_ring(channel);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------------- */

/* What is waited for: something to take (or everyone's arrival), or room for `size` bytes. */
struct want {
    struct channel *channel;
    int room;
    uint32_t size;
};

static int has(const struct want *want) {
    struct channel *channel = want->channel;
    if (want->room)
        return ring_has_room(&channel->ring, want->size);
    switch (channel->end->kind) {
    case SHM_BARRIER:
        return shm_load32(&channel->barrier.shared->generation) != channel->barrier.generation;
    case SHM_BROADCAST:
        return broadcast_has_data(&channel->broadcast);
    case SHM_MPSC:
        return mpsc_has_data(&channel->mpsc);
    default:
        return ring_has_data(&channel->ring);
    }
}

/* 0, or what the peer's end means to one who waits for it. */
static int ended(const struct want *want) {
    struct channel *channel = want->channel;
    if (channel->patient)
        return 0;
    if (want->room)
        return shm_peer_ended(&channel->ring.shared->consumer);
    switch (channel->end->kind) {
    case SHM_BARRIER: {
        int passed = barrier_passed(&channel->barrier);
        return passed == SHM_EMPTY ? 0 : passed;
    }
    case SHM_BROADCAST:
        return shm_peer_ended(&channel->broadcast.shared->writer);
    case SHM_MPSC:
        return mpsc_ended(&channel->mpsc);
    default:
        return shm_peer_ended(&channel->ring.shared->producer);
    }
}

static uint32_t *flag(const struct want *want) {
    struct channel *channel = want->channel;
    if (want->room)
        return channel->ring.space_wait;
    switch (channel->end->kind) {
    case SHM_BARRIER:
        return &channel->barrier.shared->data_wait;
    case SHM_BROADCAST:
        return &channel->broadcast.shared->data_wait;
    case SHM_MPSC:
        return &channel->mpsc.shared->data_wait;
    default:
        return channel->ring.data_wait;
    }
}

/* Sleeping begins with telling the peer; a region that this guest may only read is one whose writer always rings. */
static void announce(const struct want *want) {
    if (!(want->channel->end->flags & SHM_ALWAYS_RING))
        shm_sleep_begin(flag(want));
}

static int any(const struct want *wants, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (has(&wants[i]) || ended(&wants[i]))
            return (int)i;
    return CHANNEL_TIMEOUT;
}

/* Nobody need ring any more; where only this guest sleeps, so that no other's announcement is taken back. */
static void take_back(const struct want *want) {
    if (want->channel->end->kind == SHM_SPSC)
        shm_store32(flag(want), 0);
}

/* Notes the words that change when what is wanted comes: how many in all, or GUEST_WAIT_LOOKS + 1 when they are too many. */
static size_t note_word(struct guest_look *looks, size_t words, const void *word) {
    if (words >= GUEST_WAIT_LOOKS)
        return GUEST_WAIT_LOOKS + 1;
    looks[words] = (struct guest_look){.address = (uint64_t)word, .value = shm_load32(word)};
    return words + 1;
}

static size_t note(struct guest_look *looks, size_t words, const struct want *want) {
    const struct channel *channel = want->channel;
    if (want->room)
        return note_word(looks, words, &channel->ring.shared->head);
    switch (channel->end->kind) {
    case SHM_BARRIER:
        return note_word(looks, words, &channel->barrier.shared->generation);
    case SHM_BROADCAST:
        return note_word(looks, words, &channel->broadcast.shared->count);
    case SHM_MPSC:
        for (uint32_t i = 0; i < channel->mpsc.count && words <= GUEST_WAIT_LOOKS; i++)
            words = note_word(looks, words, ring_header(&channel->mpsc.lanes[i], channel->mpsc.lanes[i].position));
        return words;
    default:
        return note_word(looks, words, ring_header(&channel->ring, channel->ring.position));
    }
}

static int sleep_for(const struct want *wants, size_t count, uint64_t start_ns, uint64_t limit_ns) {
    uint32_t bells[GUEST_WAIT_BELLS];
    struct guest_look looks[GUEST_WAIT_LOOKS];
    for (size_t i = 0; i < count; i++)
        bells[i] = wants[i].room ? wants[i].channel->end->space_bell : wants[i].channel->end->data_bell;
    for (;;) {
        size_t words = 0;
        for (size_t i = 0; i < count; i++)
            announce(&wants[i]);
        for (size_t i = 0; i < count && words <= GUEST_WAIT_LOOKS; i++)
            words = note(looks, words, &wants[i]);
        /* A call costs more than all the rest. The host's looks behind its fence are only for what has not come yet. */
        int many = words > GUEST_WAIT_LOOKS;
        if (many)
            call(GUEST_CALL_FENCE);
        int ready = any(wants, count);
        if (ready >= 0) {
            for (size_t i = 0; i < count; i++)
                take_back(&wants[i]);
            return ready;
        }
        uint64_t left = GUEST_NO_LIMIT;
        if (limit_ns != GUEST_NO_LIMIT) {
            uint64_t passed = guest_now_ns() - start_ns;
            if (passed >= limit_ns)
                return CHANNEL_TIMEOUT;
            left = limit_ns - passed;
        }
        for (size_t i = 0; i < count; i++)
            if (wants[i].channel->patient && left > PATIENCE_NS)
                left = PATIENCE_NS;
        if (many)
            guest_wait(bells, count, left);
        else
            guest_sleep(bells, count, looks, words, left);
        /* Before anything is announced again: who finds what it wanted is awake, and need not be rung for. */
        ready = any(wants, count);
        if (ready >= 0)
            return ready;
    }
}

/* Waits for one of the wants: its index, or CHANNEL_TIMEOUT. `spin` in ticks. */
static int wait_for(const struct want *wants, size_t count, uint64_t spin, uint64_t limit_ns) {
    uint64_t start = guest_ticks(), start_ns = 0;
    for (unsigned looks = 1;; looks++) {
        for (size_t i = 0; i < count; i++)
            if (has(&wants[i]))
                return (int)i;
        shm_pause();
        if (looks % LOOKS && spin)
            continue;
        int ready = any(wants, count);
        if (ready >= 0)
            return ready;
        if (limit_ns != GUEST_NO_LIMIT) {
            if (!start_ns)
                start_ns = guest_now_ns();
            else if (guest_now_ns() - start_ns >= limit_ns)
                return CHANNEL_TIMEOUT;
        }
        if (guest_ticks() - start >= spin)
            return sleep_for(wants, count, start_ns, limit_ns);
    }
}

/* Waits on one channel: 0 to look again, or why there is nothing to look for. */
static int wait_one(struct channel *channel, int room, uint32_t size, uint64_t limit_ns) {
    struct want want = {.channel = channel, .room = room, .size = size};
    if (wait_for(&want, 1, channel->spin_ticks, limit_ns) == CHANNEL_TIMEOUT)
        return CHANNEL_TIMEOUT;
    /* What was sent before the end is still to be received. */
    int over = ended(&want);
    return has(&want) ? 0 : over;
}

/* ---- sending ----------------------------------------------------------------------------------------------------------- */

static int may_send(const struct channel *channel) {
    return channel->end->role == GUEST_ROLE_SEND;
}

int channel_reserve_slowly(struct channel *channel, size_t size, void **payload, uint64_t limit_ns) {
    if (!may_send(channel))
        return CHANNEL_ROLE;
    if (size > channel->end->max_message)
        return CHANNEL_TOO_LONG;
    if (channel->end->kind == SHM_BROADCAST)
        return broadcast_reserve(&channel->broadcast, (uint32_t)size, payload);
    for (;;) {
        int result;
        for (unsigned i = channel->looks / RING_ROOM_PAUSES;
             (result = ring_reserve(&channel->ring, (uint32_t)size, payload)) == SHM_FULL && i; i--)
            ring_spin_for_room();
        if (result != SHM_FULL)
            return result;
        result = wait_one(channel, 1, (uint32_t)size, limit_ns);
        if (result)
            return result;
    }
}

void channel_commit_slowly(struct channel *channel, size_t size) {
    int must_ring = channel->end->kind == SHM_BROADCAST ? broadcast_commit(&channel->broadcast, (uint32_t)size)
                                                        : ring_commit(&channel->ring, (uint32_t)size);
    if (must_ring)
        channel_ring(channel);
}

int channel_send_slowly(struct channel *channel, const void *data, size_t size, uint64_t limit_ns) {
    void *payload;
    int failed = channel_reserve(channel, size, &payload, limit_ns);
    if (failed)
        return failed;
    if (channel->end->kind == SHM_BROADCAST)
        ring_copy(payload, data, size);
    else
        ring_fill(&channel->ring, payload, data, (uint32_t)size);
    channel_commit(channel, size);
    return 0;
}

/* ---- receiving --------------------------------------------------------------------------------------------------------- */

int64_t channel_peek_slowly(struct channel *channel, const void **payload, uint64_t limit_ns) {
    uint32_t kind = channel->end->kind, size;
    if (!is_receiver(channel) || kind == SHM_BROADCAST || kind == SHM_BARRIER)
        return CHANNEL_ROLE;
    for (;;) {
        int result = kind == SHM_MPSC ? mpsc_peek(&channel->mpsc, payload, &size) : ring_peek(&channel->ring, payload, &size);
        if (result != SHM_EMPTY)
            return result ? result : (int64_t)size;
        result = wait_one(channel, 0, 0, limit_ns);
        if (result)
            return result;
    }
}

void channel_release_slowly(struct channel *channel) {
    int must_ring =
        channel->end->kind == SHM_MPSC ? mpsc_release(&channel->mpsc) : ring_release(&channel->ring);
    if (must_ring)
        channel_ring(channel);
}

static int64_t receive_broadcast(struct channel *channel, void *data, size_t room, uint64_t limit_ns) {
    uint64_t start = 0;
    for (;;) {
        int64_t size = broadcast_receive(&channel->broadcast, data, room);
        if (size != SHM_EMPTY)
            return size;
        /* A writer that laps for ever looks as if there were something, again and again. */
        uint64_t now = limit_ns == GUEST_NO_LIMIT ? 0 : guest_now_ns();
        start = start ? start : now;
        if (now - start > limit_ns)
            return CHANNEL_TIMEOUT;
        int failed = wait_one(channel, 0, 0, limit_ns - (now - start));
        if (failed)
            return failed;
    }
}

int64_t channel_receive_slowly(struct channel *channel, void *data, size_t room, uint64_t limit_ns) {
    if (channel->end->kind == SHM_BROADCAST && is_receiver(channel))
        return receive_broadcast(channel, data, room, limit_ns);
    const void *payload;
    int64_t size = channel_peek(channel, &payload, limit_ns);
    if (size < 0)
        return size;
    if ((uint64_t)size > room)
        return CHANNEL_TOO_LONG;
    ring_copy(data, payload, (uint64_t)size);
    channel_release(channel);
    return size;
}

uint64_t channel_lost(const struct channel *channel) {
    return channel->end->kind == SHM_BROADCAST ? channel->broadcast.lost : 0;
}

int channel_join(struct channel *channel, uint64_t limit_ns) {
    if (channel->end->kind != SHM_BARRIER)
        return CHANNEL_ROLE;
    /* After a time limit, the same meeting again: this party has arrived there already. */
    if (!channel->joining && barrier_arrive(&channel->barrier))
        ring_for(channel->end->data_bell);
    int result = wait_one(channel, 0, 0, limit_ns);
    channel->joining = result == CHANNEL_TIMEOUT;
    return result;
}

int channel_select(struct channel *const *channels, size_t count, uint64_t limit_ns) {
    struct want wants[GUEST_WAIT_BELLS];
    uint64_t spin = UINT64_MAX;
    if (!count || count > GUEST_WAIT_BELLS)
        return CHANNEL_ROLE;
    for (size_t i = 0; i < count; i++) {
        wants[i] = (struct want){.channel = channels[i]};
        if (!is_receiver(channels[i]))
            return CHANNEL_ROLE;
        if (channels[i]->spin_ticks < spin)
            spin = channels[i]->spin_ticks;
    }
    return wait_for(wants, count, spin, limit_ns);
}

/* ---- telling people ---------------------------------------------------------------------------------------------------- */

static const char *field(const struct channel *channel) {
    switch (channel->end->kind) {
    case SHM_BARRIER:
        return channel->barrier.field;
    case SHM_BROADCAST:
        return channel->broadcast.field;
    case SHM_MPSC:
        if (is_receiver(channel))
            return channel->mpsc.field;
        /* fall through */
    default:
        return channel->ring.field;
    }
}

const char *channel_error(const struct channel *channel, int64_t result) {
    switch (result) {
    case CHANNEL_TIMEOUT:
        return "the time limit passed";
    case CHANNEL_UNKNOWN:
        return "the cluster file gives this guest no such channel";
    case CHANNEL_ROLE:
        return "not for this guest's role in it, or this kind of channel";
    case CHANNEL_CLOSED:
        return "its other end was closed";
    case CHANNEL_GONE:
        return "its other end died";
    case CHANNEL_TOO_LONG:
        return "the message is longer than max_message or the buffer";
    default:
        return field(channel) ? field(channel) : "not open";
    }
}

void channel_failed(const struct channel *channel, int64_t result) {
    guest_fail("channel %s: %s%s", channel->end->name, result == CHANNEL_CORRUPT ? "a peer spoiled its field " : "",
               channel_error(channel, result));
}

void channel_must_open(struct channel *channel, const char *name) {
    int failed = channel_open(channel, name);
    if (failed == CHANNEL_UNKNOWN)
        guest_fail("channel %s: %s", name, channel_error(channel, failed));
    channel_must(channel, failed);
}
