/*
 * forward.c: see forward.h. A batch of one port's frames has few addresses, mostly one of each: what was found out for a frame is
 * kept for the next one.
 */
#include "forward.h"

#include <string.h>

#include "addresses.h"
#include "offload.h"

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum { VLAN_TYPE = 0x8100, TAG_SIZE = 4 };

/* What the last frame of the batch had. Keys are never 0. */
struct memory {
    uint64_t source, destination;
    struct port *to;                    /* of `destination`; NULL: nobody knows */
    int source_good;
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

static void deliver(struct net_switch *sw, struct port *to, const struct frame *frame) {
    if (!port_usable(to)) {
        port_drop(to, DROP_DOWN);
        return;
    }
    uint32_t needed = frame_has_offload(frame) ? needs(frame) : 0;
    int result = (to->flags & needed) == needed ? to->ops->send(to, frame) : offload_send(to, frame);
    if (!to->touched) { /* Also after a failure: segments before it may have gone. */
        to->touched = 1;
        sw->touched[sw->touched_count++] = to;
    }
    if (result == 0) {
        to->counters.frames_out++;
        to->counters.bytes_out += frame->size;
    } else if (result > 0) {
        port_drop(to, (enum drop)result);
    } else {
        fail(sw, to, result);
    }
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

static uint16_t vlan_of(const struct frame *frame) {
    uint8_t tag[2];
    if ((frame->ethernet[12] << 8 | frame->ethernet[13]) != VLAN_TYPE || frame->size < FRAME_HEADER + TAG_SIZE)
        return 0;
    frame_copy(frame, FRAME_HEADER, tag, sizeof tag);
    return (uint16_t)((tag[0] & 0xf) << 8 | tag[1]);
}

/* May this frame come from there? DROP_NONE, or why not. Learns its source. */
static enum drop admit(struct net_switch *sw, struct port *from, const struct frame *frame, uint16_t vlan, struct memory *last) {
    const uint8_t *source = frame->ethernet + 6;
    if (from->rate && over_rate(sw, from, frame->size))
        return DROP_RATE;
    uint64_t key = address_key(source, vlan);
    if (key == last->source)
        return last->source_good ? DROP_NONE : DROP_SPOOFED;
    last->source = key;
    last->source_good = !(from->flags & PORT_FIXED_MAC) || !memcmp(source, from->mac, 6);
    if (last->source_good && !address_is_group(source))
        last->source_good = addresses_learn(sw->addresses, key, from, sw->now_ns);
    return last->source_good ? DROP_NONE : DROP_SPOOFED;
}

static void flood(struct net_switch *sw, struct port *from, const struct frame *frame) {
    for (uint32_t i = 0; i < sw->port_count; i++) {
        struct port *to = sw->ports[i];
        if (to != from && port_usable(to) && !apart(from, to))
            deliver(sw, to, frame);
    }
}

static void forward(struct net_switch *sw, struct port *from, const struct frame *frame, struct memory *last) {
    from->counters.frames_in++;
    from->counters.bytes_in += frame->size;
    uint16_t vlan = vlan_of(frame);
    enum drop refused = admit(sw, from, frame, vlan, last);
    if (refused) {
        port_drop(from, refused);
        return;
    }
    struct port *to = NULL;
    if (!address_is_group(frame->ethernet)) {
        uint64_t key = address_key(frame->ethernet, vlan);
        if (key != last->destination) {
            last->destination = key;
            last->to = addresses_find(sw->addresses, key, sw->now_ns);
        }
        to = last->to;
    }
    if (to == from)
        return; /* It lives on the side that it came from. */
    if (to && apart(from, to)) {
        port_drop(from, DROP_ISOLATED);
        return;
    }
    if (sw->tap)
        sw->tap(sw->tap_context, frame, from, to);
    if (to)
        deliver(sw, to, frame);
    else
        flood(sw, from, frame);
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
    int count = from->ops->peek(from, sw->frames, FRAME_BATCH);
    if (count < 0) {
        fail(sw, from, count);
        return 0;
    }
    struct memory last = {0};
    for (int i = 0; i < count; i++)
        forward(sw, from, &sw->frames[i], &last);
    flush(sw);
    /* Also after none: what was passed over (runts) is given back, too. */
    int error = from->ops->release(from);
    if (error < 0)
        fail(sw, from, error);
    return (uint32_t)count;
}

uint32_t forward_round(struct net_switch *sw) {
    uint32_t frames = 0;
    for (uint32_t i = 0; i < sw->port_count; i++)
        if (port_usable(sw->ports[i]))
            frames += serve(sw, sw->ports[i]);
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
