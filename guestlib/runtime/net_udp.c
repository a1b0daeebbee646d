/* net_udp.c: UDP sockets (RFC 768) on a port. */
#include "net_ip.h"

enum { EPHEMERAL = 49152 };           /* first of the ports that nobody asked for (RFC 6335) */
static const uint32_t QUEUE = 65536;  /* bytes that wait for a socket */
static const uint32_t LONGEST = 4;    /* or so many datagrams, where that is more */
static const uint32_t WRAP = ~(uint32_t)0;

/* In front of a datagram in the queue; a size of WRAP says: go on at the start. */
struct record {
    uint32_t size;
    struct udp_peer from;
};

struct udp_socket {
    struct net_port *port;
    struct udp_socket *next;
    uint16_t local;             /* 0: closed, for the next to be opened */
    /* Where udp_receive_from waits for one: then it needn't pass the queue. */
    uint8_t *data;
    size_t room;
    struct udp_peer from;
    int64_t size;
    int taking;
    uint8_t *queue;
    uint32_t capacity, head, tail, count;
};

/* ---- opening ----------------------------------------------------------------------------------------------------------- */

static void receive(struct net_port *port, const struct net_packet *packet);

static struct udp_socket *find(const struct net_port *port, uint16_t local) {
    struct udp_socket *socket = port->ip->sockets;
    while (socket && socket->local != local)
        socket = socket->next;
    return socket;
}

static uint16_t unused(const struct net_port *port) {
    uint32_t ports = 65536 - EPHEMERAL, first = (uint32_t)(guest_random() % ports);
    for (uint32_t i = 0; i < ports; i++) {
        uint16_t local = (uint16_t)(EPHEMERAL + (first + i) % ports);
        if (!find(port, local))
            return local;
    }
    return 0;
}

/* A closed one, or a new one. */
static struct udp_socket *make(struct net_port *port) {
    struct udp_socket *socket = find(port, 0);
    if (socket)
        return socket;
    uint32_t longest = LONGEST * (port->info->mtu + (uint32_t)sizeof(struct record));
    socket = guest_alloc(sizeof *socket, 64);
    uint8_t *queue = guest_alloc(longest > QUEUE ? longest : QUEUE, 64);
    if (!socket || !queue)
        return NULL;
    *socket = (struct udp_socket){.port = port, .next = port->ip->sockets, .queue = queue};
    socket->capacity = longest > QUEUE ? longest : QUEUE;
    port->ip->sockets = socket;
    return socket;
}

struct udp_socket *udp_open(struct net_port *port, uint16_t local_port) {
    int failed = net_ip_open(port);
    if (failed)
        return net_none(failed);
    if (local_port ? find(port, local_port) != NULL : !(local_port = unused(port)))
        return net_none(NET_IN_USE);
    struct udp_socket *socket = make(port);
    if (!socket)
        return net_none(NET_NO_MEMORY);
    socket->local = local_port;
    socket->head = socket->tail = socket->count = 0;
    port->ip->udp = receive;
    return socket;
}

struct udp_socket *udp_must_open(struct net_port *port, uint16_t local_port) {
    struct udp_socket *socket = udp_open(port, local_port);
    if (!socket)
        net_failed(port->info->name, net_why());
    return socket;
}

void udp_close(struct udp_socket *socket) {
    socket->local = 0;
}

uint16_t udp_port(const struct udp_socket *socket) {
    return socket->local;
}

uint32_t udp_max_size(const struct udp_socket *socket) {
    uint32_t most = socket->port->max_frame - (uint32_t)sizeof(struct wire_ethernet);
    if (most > socket->port->info->mtu)
        most = socket->port->info->mtu;
    return most - (uint32_t)(sizeof(struct wire_ipv4) + sizeof(struct wire_udp));
}

/* ---- the queue --------------------------------------------------------------------------------------------------------- */

static uint32_t stored(uint32_t size) {
    return (uint32_t)sizeof(struct record) + (size + 3) / 4 * 4;
}

/* Room for a record and `size` bytes behind the last one, or NULL. */
static struct record *push(struct udp_socket *socket, uint32_t size) {
    uint32_t need = stored(size);
    if (!socket->count)
        socket->head = socket->tail = 0;
    if (socket->tail >= socket->head && (!socket->count || socket->tail > socket->head)) {
        if (socket->capacity - socket->tail < need) {
            if (socket->head < need)
                return NULL;
            if (socket->capacity - socket->tail >= sizeof(struct record))
                ((struct record *)(socket->queue + socket->tail))->size = WRAP;
            socket->tail = 0;
        }
    } else if (socket->head - socket->tail < need)
        return NULL;
    return (struct record *)(socket->queue + socket->tail);
}

static void pushed(struct udp_socket *socket, struct record *record) {
    socket->tail += stored(record->size);
    socket->count++;
}

static struct record *first(struct udp_socket *socket) {
    struct record *record = (struct record *)(socket->queue + socket->head);
    if (socket->capacity - socket->head >= sizeof *record && record->size != WRAP)
        return record;
    socket->head = 0;
    return (struct record *)socket->queue;
}

static void popped(struct udp_socket *socket, const struct record *record) {
    socket->head += stored(record->size);
    socket->count--;
}

/* ---- receiving --------------------------------------------------------------------------------------------------------- */

/* What arrived for a socket: one datagram, or several with one header, which are as long as `segment` but for the last. */
struct arrival {
    const struct net_packet *packet;
    struct wire_udp header;
    uint32_t size, segment;
};

/* Copies `size` bytes from `offset` on and says whether the copy's checksum is right. That of several is undone always. */
static int copy(const struct arrival *arrival, uint32_t offset, void *to, uint32_t size) {
    const struct net_packet *packet = arrival->packet;
    const struct wire_udp *header = &arrival->header;
    memcpy(to, packet->payload + sizeof *header + offset, size);
    if (!header->checksum || net_ip_unchecked(packet->offload, packet->start, offsetof(struct wire_udp, checksum)))
        return 1;
    uint32_t addresses[2] = {wire32(packet->source), wire32(packet->destination)};
    uint64_t sum = wire_sum(addresses, sizeof addresses, wire16(IPV4_UDP)) + header->size;
    return wire_fold(wire_sum(to, size, wire_sum(header, sizeof *header, sum))) == 0xffff;
}

static struct udp_peer sender(const struct arrival *arrival) {
    return (struct udp_peer){arrival->packet->source, wire16(arrival->header.source)};
}

/* Straight to who waits for it: 1, or 0 where its checksum is wrong. */
static int hand_over(struct udp_socket *socket, const struct arrival *arrival, uint32_t offset, uint32_t size) {
    if (size <= socket->room && !copy(arrival, offset, socket->data, size))
        return 0;
    socket->size = size <= socket->room ? (int64_t)size : NET_TOO_LONG;
    socket->from = sender(arrival);
    socket->taking = 0;
    return 1;
}

static void deliver(struct udp_socket *socket, const struct arrival *arrival, uint32_t offset, uint32_t size) {
    struct net_counters *counters = &socket->port->counters;
    if (socket->taking) {
        counters->checksum += !hand_over(socket, arrival, offset, size);
        return;
    }
    struct record *record = push(socket, size);
    if (!record) {
        counters->queue_full++;
    } else if (!copy(arrival, offset, record + 1, size)) {
        counters->checksum++;
    } else {
        *record = (struct record){size, sender(arrival)};
        pushed(socket, record);
    }
}

/* Checked: the lengths, against the packet; the header is read once. */
static void receive(struct net_port *port, const struct net_packet *packet) {
    struct net_counters *counters = &port->counters;
    struct arrival arrival = {.packet = packet};
    if (packet->size < sizeof arrival.header) {
        counters->runt++;
        return;
    }
    memcpy(&arrival.header, packet->payload, sizeof arrival.header);
    uint32_t size = wire16(arrival.header.size);
    if (size < sizeof arrival.header || size > packet->size) {
        counters->malformed++;
        return;
    }
    arrival.size = size - (uint32_t)sizeof arrival.header;
    arrival.segment = packet->offload->segmentation ? packet->offload->segment_size : arrival.size;
    uint16_t local = wire16(arrival.header.destination);
    struct udp_socket *socket = local ? find(port, local) : NULL;
    if (!socket) {
        counters->no_socket++;
        return;
    }
    uint32_t offset = 0;
    do {
        uint32_t left = arrival.size - offset;
        deliver(socket, &arrival, offset, left < arrival.segment ? left : arrival.segment);
        offset += arrival.segment;
    } while (offset < arrival.size);
}

static int64_t take_first(struct udp_socket *socket, void *data, size_t room, struct udp_peer *from) {
    const struct record *record = first(socket);
    if (from)
        *from = record->from;
    if (record->size <= room)
        memcpy(data, record + 1, record->size);
    popped(socket, record);
    return record->size <= room ? (int64_t)record->size : NET_TOO_LONG;
}

int64_t udp_receive_from(struct udp_socket *socket, void *data, size_t room, struct udp_peer *from, uint64_t limit_ns) {
    struct net_limit limit = {.ns = limit_ns};
    if (socket->count)
        return take_first(socket, data, room, from);
    socket->data = data;
    socket->room = room;
    socket->taking = 1;
    for (;;) {
        int result = net_ip_step(socket->port, &limit);
        if (!socket->taking) {
            if (from)
                *from = socket->from;
            return socket->size;
        }
        if (!result && !net_goes_on(&limit))
            result = NET_TIMEOUT;
        if (result) {
            socket->taking = 0;
            return result;
        }
    }
}

/* ---- waiting for several ----------------------------------------------------------------------------------------------- */

static int any(struct udp_socket *const *sockets, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (sockets[i]->count)
            return (int)i;
    return NET_TIMEOUT;
}

/* Sees to one frame of each port: how many there were, or NET_CORRUPT. */
static int see_to_all(struct udp_socket *const *sockets, size_t count) {
    int frames = 0;
    for (size_t i = 0; i < count; i++) {
        struct net_limit none = {.ns = 0};
        int result = net_ip_step(sockets[i]->port, &none);
        if (result == NET_CORRUPT)
            return result;
        frames += !result;
    }
    return frames;
}

int udp_select(struct udp_socket *const *sockets, size_t count, uint64_t limit_ns) {
    struct net_limit limit = {.ns = limit_ns};
    struct channel *inboxes[GUEST_WAIT_BELLS];
    if (!count || count > GUEST_WAIT_BELLS)
        return CHANNEL_ROLE;
    for (size_t i = 0; i < count; i++)
        inboxes[i] = net_inbox(sockets[i]->port);
    for (;;) {
        int found = any(sockets, count);
        if (found >= 0)
            return found;
        int frames = see_to_all(sockets, count);
        if (frames < 0)
            return frames;
        if (frames && net_goes_on(&limit))
            continue;
        uint64_t left = net_left(&limit);
        if (!left || (!frames && channel_select(inboxes, count, left) == CHANNEL_TIMEOUT))
            return any(sockets, count);
    }
}

/* ---- sending ----------------------------------------------------------------------------------------------------------- */

/* What a datagram's message begins with: as much as stands in the first line of the ring, two bytes of the datagram too. */
struct start {
    struct net_offload offload;
    uint8_t headers[NET_HEADERS];
    struct wire_udp udp;
    uint8_t data[2];
} __attribute__((packed));

_Static_assert(sizeof(struct start) == SHM_LINE - RING_HEADER, "one line");

int udp_send_to(struct udp_socket *socket, uint32_t address, uint16_t to_port, const void *data, size_t size,
                uint64_t limit_ns) {
    const size_t empty = offsetof(struct start, data), frame_size = empty - sizeof(struct net_offload) + size;
    struct net_port *port = socket->port;
    struct net_limit limit = {.ns = limit_ns};
    struct start start;
    uint8_t mac[6], *message;
    if (size > udp_max_size(socket))
        return NET_TOO_LONG;
    int failed = net_ip_route(port, address, mac, &limit);
    if (!failed)
        failed = net_room(port, frame_size, &message, 0);
    if (failed == NET_TIMEOUT) /* Full: only now the clock is worth its time. */
        failed = net_room(port, frame_size, &message, net_left(&limit));
    if (failed)
        return failed;
    uint32_t addresses[2] = {wire32(port->ip->address), wire32(address)};
    start.udp = (struct wire_udp){wire16(socket->local), wire16(to_port), wire16((uint16_t)(size + sizeof start.udp)), 0};
    start.udp.checksum = wire_fold(wire_sum(addresses, sizeof addresses, wire16(IPV4_UDP)) + start.udp.size);
    /* The rest of the checksum is for whoever needs one: a network card does it, and other guests can do without. */
    start.offload = (struct net_offload){.flags = NET_NEEDS_CHECKSUM, .checksum_start = NET_HEADERS,
                                         .checksum_offset = offsetof(struct wire_udp, checksum)};
    net_ip_headers(port, start.headers, mac, address, IPV4_UDP, (uint32_t)(size + sizeof start.udp));
    size_t with = size < sizeof start.data ? size : sizeof start.data;
    memcpy(start.data, data, with);
    /* The first line last: the switch polls it. */
    if (size > with)
        memcpy(message + sizeof start, (const uint8_t *)data + with, size - with);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(message, &start, empty + with);
    net_post(port, frame_size);
    return 0;
}
