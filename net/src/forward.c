/*
 * forward.c: see forward.h. A batch of one port's frames is taken in runs of those that have the same Ethernet header: what is
 * decided by it is decided once for a run, which goes to its receiver in one call.
 */
#include "forward.h"

#include <string.h>

#include "addresses.h"
#include "offload.h"

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum { VLAN_TYPE = 0x8100, TAG_SIZE = 4 };

/* What the last run of the batch had. Keys are never 0. */
struct memory {
    uint64_t source, destination;
    struct port *to;                    /* of `destination`; NULL: nobody knows */
    int source_good;
};

/* Frames of a batch that follow one another and have the same Ethernet header. */
struct run {
    const struct frame *frames;
    int count;
    int undone;                         /* something is, of one of them at least */
    uint64_t bytes;
};

static void fail(struct net_switch *sw, struct port *port, int error) {
    switch_quarantine(sw, port, (enum port_error)-error, port->field);
}

/* --- to one port --- */

/* What a receiver must take for the frame to go there as it is. */
static uint32_t needs(const struct frame *frame) {
    uint32_t flags = frame->offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? PORT_TAKES_CSUM : 0;
    switch (frame->offload.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
        return flags;
    case VIRTIO_NET_HDR_GSO_TCPV4:
        return flags | PORT_TAKES_TSO4;
    case VIRTIO_NET_HDR_GSO_TCPV6:
        return flags | PORT_TAKES_TSO6;
    default:
        return flags | PORT_TAKES_USO;
    }
}

static int takes(const struct port *to, const struct frame *frame) {
    return !frame_has_offload(frame) || !(needs(frame) & ~to->flags);
}

/* Frames that `to` takes as they are: how many went in, as send_many. */
static int send(struct port *to, const struct frame *frames, int count, int *result) {
    if (to->ops->send_many)
        return to->ops->send_many(to, frames, count, result);
    for (int i = 0; i < count; i++)
        if ((*result = to->ops->send(to, &frames[i])))
            return i;
    return count;
}

static uint64_t bytes_of(const struct frame *frames, int count) {
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += frames[i].size;
    return bytes;
}

static void count_out(struct port *to, uint64_t count, uint64_t bytes) {
    to->counters.frames_out += count;
    to->counters.bytes_out += bytes;
}

/* What a receiver does not take as they are is done for it; frames that can't be sent are dropped, the others go on. */
static void deliver_singly(struct net_switch *sw, struct port *to, const struct frame *frames, int count) {
    while (count) {
        if (!port_usable(to)) {
            to->counters.drops[DROP_DOWN] += (uint64_t)count;
            return;
        }
        int result = 0, sent = 0, fit = 0;
        while (fit < count && takes(to, &frames[fit]))
            fit++;
        if (fit)
            sent = send(to, frames, fit, &result);
        else if (!(result = offload_send(to, frames)))
            sent = 1;
        count_out(to, (uint64_t)sent, bytes_of(frames, sent));
        frames += sent;
        count -= sent;
        if (!result)
            continue;
        if (result < 0)
            fail(sw, to, result);
        else
            port_drop(to, (enum drop)result);
        frames++;
        count--;
    }
}

static void deliver(struct net_switch *sw, struct port *to, const struct run *run) {
    if (!to->touched) { /* Also after a failure: what went before it is there. */
        to->touched = 1;
        sw->touched[sw->touched_count++] = to;
    }
    if (!port_usable(to) || run->undone) {
        deliver_singly(sw, to, run->frames, run->count);
        return;
    }
    int result = 0, sent = send(to, run->frames, run->count, &result);
    count_out(to, (uint64_t)sent, sent == run->count ? run->bytes : bytes_of(run->frames, sent));
    if (!result)
        return;
    if (result < 0)
        fail(sw, to, result);
    else
        port_drop(to, (enum drop)result);
    deliver_singly(sw, to, run->frames + sent + 1, run->count - sent - 1);
}

/* --- from one port --- */

static int apart(const struct port *a, const struct port *b) {
    return (a->flags & PORT_ISOLATED && !(b->flags & PORT_UPLINK)) || (b->flags & PORT_ISOLATED && !(a->flags & PORT_UPLINK));
}

static int over_rate(const struct net_switch *sw, struct port *port, uint32_t size) {
    if (sw->now_ns > port->refilled) {
        /* In two steps, so that no product overflows at any rate, after any pause. */
        uint64_t passed = sw->now_ns - port->refilled, full = port->burst - port->tokens;
        double earned = (double)passed * 1e-9 * (double)port->rate;
        if (earned >= 1) { /* Else it is kept for later. */
            port->tokens += earned >= (double)full ? full : (uint64_t)earned;
            port->refilled = sw->now_ns;
        }
    }
    if (port->tokens < size)
        return 1;
    port->tokens -= size;
    return 0;
}

static int type_of(const struct frame *frame) {
    return frame->ethernet[12] << 8 | frame->ethernet[13];
}

static uint16_t vlan_of(const struct frame *frame) {
    uint8_t tag[2];
    if (type_of(frame) != VLAN_TYPE || frame->size < FRAME_HEADER + TAG_SIZE)
        return 0;
    frame_copy(frame, FRAME_HEADER, tag, sizeof tag);
    return (uint16_t)((tag[0] & 0xf) << 8 | tag[1]);
}

/* May frames with this header come from there? Learns their source. */
static int admit(struct net_switch *sw, struct port *from, const struct frame *frame, uint16_t vlan, struct memory *last) {
    const uint8_t *source = frame->ethernet + 6;
    uint64_t key = address_key(source, vlan);
    if (key == last->source)
        return last->source_good;
    last->source = key;
    last->source_good = !(from->flags & PORT_FIXED_MAC) || !memcmp(source, from->mac, 6);
    if (last->source_good && !address_is_group(source))
        last->source_good = addresses_learn(sw->addresses, key, from, sw->now_ns);
    return last->source_good;
}

static struct port *way_of(struct net_switch *sw, const struct frame *frame, uint16_t vlan, struct memory *last) {
    if (address_is_group(frame->ethernet))
        return NULL;
    uint64_t key = address_key(frame->ethernet, vlan);
    if (key != last->destination) {
        last->destination = key;
        last->to = addresses_find(sw->addresses, key, sw->now_ns);
    }
    return last->to;
}

static void flood(struct net_switch *sw, struct port *from, const struct run *run) {
    for (uint32_t i = 0; i < sw->port_count; i++) {
        struct port *to = sw->ports[i];
        if (to != from && port_usable(to) && !apart(from, to))
            deliver(sw, to, run);
    }
}

static void forward(struct net_switch *sw, struct port *from, const struct run *run, struct memory *last) {
    uint16_t vlan = vlan_of(run->frames);
    if (!admit(sw, from, run->frames, vlan, last)) {
        from->counters.drops[DROP_SPOOFED] += (uint64_t)run->count;
        return;
    }
    struct port *to = way_of(sw, run->frames, vlan, last);
    if (to == from)
        return; /* It lives on the side that it came from. */
    if (to && apart(from, to)) {
        from->counters.drops[DROP_ISOLATED] += (uint64_t)run->count;
        return;
    }
    if (sw->tap)
        sw->tap(sw->tap_context, run->frames, run->count, from, to);
    if (to)
        deliver(sw, to, run);
    else
        flood(sw, from, run);
}

static int same_header(const struct frame *a, const struct frame *b) {
    uint64_t first[2], second[2]; /* Two bytes of them are in both words. */
    memcpy(&first[0], a->ethernet, 8), memcpy(&first[1], a->ethernet + FRAME_HEADER - 8, 8);
    memcpy(&second[0], b->ethernet, 8), memcpy(&second[1], b->ethernet + FRAME_HEADER - 8, 8);
    return first[0] == second[0] && first[1] == second[1];
}

/* The frames that can be forwarded like the first, one at least. VLAN tags are behind the header. */
static struct run run_of(const struct frame *frames, int count) {
    uint64_t bytes = 0;
    uint32_t undone = 0;
    int run = 0, most = type_of(frames) != VLAN_TYPE ? count : 1;
    do {
        bytes += frames[run].size;
        undone |= frames[run].offload.flags | (uint32_t)frames[run].offload.gso_type;
        run++;
    } while (run < most && same_header(frames, &frames[run]));
    return (struct run){frames, run, undone != 0, bytes};
}

/* Drops frames over the port's rate, which are counted here; moves the others together: how many they are. */
static int keep_to_rate(struct net_switch *sw, struct port *from, struct frame *frames, int count) {
    int kept = 0;
    for (int i = 0; i < count; i++) {
        if (over_rate(sw, from, frames[i].size)) {
            from->counters.frames_in++;
            from->counters.bytes_in += frames[i].size;
            port_drop(from, DROP_RATE);
        } else if (kept++ < i) {
            frames[kept - 1] = frames[i];
        }
    }
    return kept;
}

static void flush(struct net_switch *sw) {
    for (uint32_t i = 0; i < sw->touched_count; i++) {
        struct port *port = sw->touched[i];
        port->touched = 0;
        int error = port->quarantined ? 0 : port->ops->flush(port);
        if (error < 0)
            fail(sw, port, error);
    }
    sw->touched_count = 0;
}

static uint32_t serve(struct net_switch *sw, struct port *from) {
    struct frame *frames = sw->frames;
    int count = from->ops->peek(from, frames, FRAME_BATCH);
    if (count < 0) {
        fail(sw, from, count);
        return 0;
    }
    struct memory last = {0};
    int kept = from->rate ? keep_to_rate(sw, from, frames, count) : count;
    for (int i = 0; i < kept;) {
        struct run run = run_of(&frames[i], kept - i);
        from->counters.frames_in += (uint64_t)run.count;
        from->counters.bytes_in += run.bytes;
        forward(sw, from, &run, &last);
        i += run.count;
    }
    flush(sw);
    /* Also after none: what was passed over (runts) is given back, too. */
    int error = from->ops->release(from);
    if (error < 0)
        fail(sw, from, error);
    return (uint32_t)count;
}

/*
 * A look at a port where nothing ever is costs what a frame costs: while there is traffic, ports that were quiet for QUIET looks
 * are looked at in every PATIENCE-th round only. A round without frames is followed by one that looks at all.
 */
enum { QUIET = 200, PATIENCE = 8 };

uint32_t forward_round(struct net_switch *sw) {
    uint32_t frames = 0;
    int all = sw->round++ % PATIENCE == 0;
    for (uint32_t i = 0; i < sw->port_count; i++) {
        if (!port_usable(sw->ports[i]) || (!all && sw->quiet[i] == QUIET))
            continue;
        uint32_t came = serve(sw, sw->ports[i]);
        frames += came;
        sw->quiet[i] = came ? 0 : sw->quiet[i] < QUIET ? (uint8_t)(sw->quiet[i] + 1) : QUIET;
    }
    if (!frames)
        sw->round = 0;
    return frames;
}

/* --- names --- */

const char *port_error_name(enum port_error error) {
    static const char *const names[PORT_ERRORS] = {
        [PORT_OK] = "none",           [PORT_E_RING] = "ring",   [PORT_E_QUEUE] = "queue",       [PORT_E_ADDRESS] = "address",
        [PORT_E_FAULT] = "memory gone", [PORT_E_PROTOCOL] = "protocol", [PORT_E_DEVICE] = "device",
    };
    return (unsigned)error < PORT_ERRORS ? names[error] : "unknown";
}

const char *drop_name(enum drop drop) {
    static const char *const names[DROPS] = {
        [DROP_NONE] = "none",         [DROP_RUNT] = "runt",       [DROP_OVERSIZE] = "oversize", [DROP_SPOOFED] = "spoofed",
        [DROP_ISOLATED] = "isolated", [DROP_RATE] = "rate",       [DROP_OFFLOAD] = "offload",   [DROP_FULL] = "full",
        [DROP_DOWN] = "down",         [DROP_UNFIT] = "unfit",
    };
    return (unsigned)drop < DROPS ? names[drop] : "unknown";
}
