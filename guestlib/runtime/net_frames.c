/* net_frames.c: Ethernet frames by the two rings of a port. */
#include "net_port.h"
#include "ends.h"

static struct net_port *ports; /* of all networks, once one was opened */
static int problem;

/* ---- opening ----------------------------------------------------------------------------------------------------------- */

void *net_none(int why) {
    problem = why;
    return NULL;
}

int net_why(void) {
    return problem;
}

static const struct guest_network *networks(void) {
    return (const struct guest_network *)((const char *)guest_info() + guest_info()->networks.offset);
}

static int open_rings(struct net_port *port, const struct guest_network *info) {
    const struct guest_channel *ends = (const struct guest_channel *)((const char *)guest_info() + guest_info()->channels.offset);
    int failed = channel_open_end(&port->out, &ends[info->out]);
    if (!failed)
        failed = channel_open_end(&port->in, &ends[info->in]);
    if (failed)
        return failed;
    port->out.patient = port->in.patient = 1; /* Switches come and go. */
    uint32_t most = port->out.end->max_message - (uint32_t)sizeof(struct net_offload);
    port->max_frame = info->mtu + 18 < most ? info->mtu + 18 : most;
    port->info = info;
    return 0;
}

struct net_port *net_open(const char *network) {
    uint32_t count = guest_info()->networks.size, i = 0;
    while (network && i < count && strcmp(networks()[i].name, network) != 0)
        i++;
    if (i >= count)
        return net_none(NET_UNKNOWN);
    if (!ports)
        ports = guest_alloc(count * sizeof *ports, 64);
    if (!ports)
        return net_none(NET_NO_MEMORY);
    if (!ports[i].info) {
        int failed = open_rings(&ports[i], &networks()[i]);
        if (failed)
            return net_none(failed);
    }
    return &ports[i];
}

struct net_port *net_must_open(const char *network) {
    struct net_port *port = net_open(network);
    if (!port)
        net_failed(network ? network : "the first network", net_why());
    return port;
}

const struct guest_network *net_info(const struct net_port *port) {
    return port->info;
}

const struct net_counters *net_counters(const struct net_port *port) {
    return &port->counters;
}

uint32_t net_max_frame(const struct net_port *port) {
    return port->max_frame;
}

int net_up(const struct net_port *port) {
    return shm_load32(&port->in.ring.shared->producer) == SHM_ATTACHED;
}

void net_spin(struct net_port *port, uint64_t ns) {
    channel_spin(&port->in, ns);
    channel_spin(&port->out, ns);
}

struct channel *net_inbox(struct net_port *port) {
    return &port->in;
}

/* ---- sending ----------------------------------------------------------------------------------------------------------- */

int net_room(struct net_port *port, size_t size, uint8_t **message, uint64_t limit_ns) {
    if (size < NET_ETHERNET)
        return NET_RUNT;
    if (size > port->max_frame)
        return NET_TOO_LONG;
    size += sizeof(struct net_offload);
    void *room = NULL;
    int failed = ring_reserve(&port->out.ring, (uint32_t)size, &room);
    if (failed == SHM_FULL)
        failed = limit_ns ? channel_reserve(&port->out, size, &room, limit_ns) : NET_TIMEOUT;
    *message = room;
    return failed;
}

void net_post(struct net_port *port, size_t size) {
    port->counters.sent++;
    if (ring_commit(&port->out.ring, (uint32_t)(size + sizeof(struct net_offload))))
        channel_ring(&port->out);
}

int net_send(struct net_port *port, const void *frame, size_t size, const struct net_offload *offload, uint64_t limit_ns) {
    static const struct net_offload nothing;
    const size_t first = SHM_LINE - RING_HEADER - sizeof *offload;
    uint8_t *message;
    int failed = net_room(port, size, &message, limit_ns);
    if (failed)
        return failed;
    /* The first line last, as ring_fill does: the switch polls it. */
    uint8_t *to = message + sizeof *offload;
    if (size > first)
        memcpy(to + first, (const uint8_t *)frame + first, size - first);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(message, offload ? offload : &nothing, sizeof *offload);
    memcpy(to, frame, size < first ? size : first);
    net_post(port, size);
    return 0;
}

int net_reserve(struct net_port *port, size_t size, uint8_t **frame, uint64_t limit_ns) {
    uint8_t *message;
    int failed = net_room(port, size, &message, limit_ns);
    if (failed)
        return failed;
    memset(message, 0, sizeof(struct net_offload));
    *frame = message + sizeof(struct net_offload);
    return 0;
}

int net_commit(struct net_port *port, size_t size) {
    if (size < NET_ETHERNET)
        return NET_RUNT;
    net_post(port, size);
    return 0;
}

uint8_t *net_answer(struct net_port *port, uint32_t size) {
    uint8_t *frame;
    return net_reserve(port, size, &frame, 0) ? NULL : frame;
}

/* ---- receiving --------------------------------------------------------------------------------------------------------- */

/* The next message, or what ring_peek says. */
static int look(struct net_port *port, const void **message, uint32_t *size, uint64_t limit_ns) {
    struct ring *ring = &port->in.ring;
    int result = ring_peek(ring, message, size);
    for (unsigned i = limit_ns ? port->in.looks : 0; result == SHM_EMPTY && i; i--) {
        ring_spin(ring);
        result = ring_peek(ring, message, size);
    }
    return result;
}

/* Can what a sender says that it left undone be, in a frame of `size` bytes? */
static int possible(struct net_offload *offload, uint32_t size) {
    if (offload->flags & NET_NEEDS_CHECKSUM && (uint32_t)offload->checksum_start + offload->checksum_offset + 2 > size)
        return 0;
    if (offload->segmentation && !offload->segment_size)
        return 0;
    if (offload->header_size > size) /* A hint only (5.1.6.2.1). */
        offload->header_size = (uint16_t)size;
    return 1;
}

int64_t net_pull(struct net_port *port, const uint8_t **frame, struct net_offload *offload, struct net_limit *limit) {
    const void *message;
    uint32_t size;
    for (;;) {
        int result = look(port, &message, &size, limit->ns);
        if (result == SHM_EMPTY) {
            uint64_t left = net_left(limit);
            int64_t found = left ? channel_peek(&port->in, &message, left) : NET_TIMEOUT;
            if (found < 0)
                return found;
            size = (uint32_t)found;
        } else if (result)
            return result;
        if (size >= sizeof *offload + NET_ETHERNET) {
            memcpy(offload, message, sizeof *offload);
            size -= (uint32_t)sizeof *offload;
            *frame = (const uint8_t *)message + sizeof *offload;
            if (possible(offload, size)) {
                port->counters.received++;
                return size;
            }
        }
        port->counters.runt++;
        net_release(port);
        if (!net_goes_on(limit))
            return NET_TIMEOUT;
    }
}

static int64_t peek(struct net_port *port, const uint8_t **frame, struct net_offload *offload, struct net_limit *limit) {
    for (;;) {
        int64_t size = net_pull(port, frame, offload, limit);
        if (size < 0 || !port->input || !port->input(port, offload, *frame, (uint32_t)size))
            return size;
        net_release(port);
        if (!net_goes_on(limit))
            return NET_TIMEOUT;
    }
}

int64_t net_peek(struct net_port *port, const uint8_t **frame, struct net_offload *offload, uint64_t limit_ns) {
    struct net_offload unwanted;
    struct net_limit limit = {.ns = limit_ns};
    return peek(port, frame, offload ? offload : &unwanted, &limit);
}

void net_release(struct net_port *port) {
    if (ring_release(&port->in.ring))
        channel_ring(&port->in);
}

int64_t net_receive(struct net_port *port, void *data, size_t room, struct net_offload *offload, uint64_t limit_ns) {
    const uint8_t *frame;
    int64_t size = net_peek(port, &frame, offload, limit_ns);
    if (size < 0)
        return size;
    if ((uint64_t)size > room)
        return NET_TOO_LONG;
    memcpy(data, frame, (size_t)size);
    net_release(port);
    return size;
}

/* ---- telling people ---------------------------------------------------------------------------------------------------- */

const char *net_error(int64_t result) {
    switch (result) {
    case NET_TIMEOUT:
        return "the time limit passed";
    case NET_CORRUPT:
        return "the switch spoiled a ring";
    case NET_TOO_LONG:
        return "longer than the network's MTU or the buffer";
    case NET_UNKNOWN:
        return "the cluster file puts this guest on no such network";
    case NET_NO_MEMORY:
        return "no memory left; give this guest more";
    case NET_NO_ADDRESS:
        return "the network has no subnet, so this guest has no address there";
    case NET_IN_USE:
        return "another socket has that port";
    case NET_NO_ROUTE:
        return "no way to that address: it is not in the subnet, and there is no gateway, or nobody can have it";
    case NET_UNREACHABLE:
        return "nobody says that the address is his";
    case NET_RUNT:
        return "shorter than an Ethernet header";
    default:
        return "the ring's configuration is impossible";
    }
}

void net_failed(const char *what, int64_t result) {
    guest_fail("%s: %s", what, net_error(result));
}
