/*
 * net_fuzz.c: hostile frames against a unikernel's IPv4, ARP, ICMP and UDP, under the sanitizers: net_fuzz SEED CASES.
 *
 * The runtime's sources, in a process of the host; what they need of the rest is here. Frames lie in blocks of exactly their
 * size, or come by a ring. What is to become of each frame is told by `judge`, which shares nothing with the runtime; what
 * sockets hold and what is sent must be that.
 */
#include <stdio.h>
#include <stdlib.h>

#include "net_ip.h"
#include "ends.h"

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "net_fuzz: case %lu: line %d: %s\n", number, __LINE__, #condition); \
            abort();                                                                         \
        }                                                                                    \
    } while (0)

enum { RING = 65536, MTU = 1500, LONGEST = MTU + 18, SOCKETS = 3, HELD = 8192 };

static const uint32_t OWN = 0x0a070002, GATEWAY = 0x0a070001;
static const uint8_t MAC[6] = {2, 0, 0, 0, 0, 10}, PEER_MAC[6] = {2, 0, 0, 0, 0, 11};
static const uint16_t PORTS[SOCKETS] = {7, 53, 60000};

static uint64_t number, state, delivered, answered, refused, sent, resolved, full, too_long, taken, several;

static uint32_t rnd(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

/* ---- what stands in for the rest of the runtime ------------------------------------------------------------------------ */

static struct {
    struct guest_info info;
    struct guest_network network;
    struct guest_channel channels[2];
    struct guest_host hosts[1];
    char names[16];
} area;

const struct guest_info *guest_info(void) {
    return &area.info;
}
const char *guest_name(void) {
    return area.names;
}
uint64_t guest_now_ns(void) {
    static uint64_t now;
    return now += 1000000;
}
static uint64_t second; /* short, so that neighbours grow old; or unknown */
uint64_t guest_ns_to_ticks(uint64_t ns) {
    return ns / 1000000000 * second;
}
uint64_t guest_random(void) {
    return state;
}
void *guest_alloc(size_t size, size_t align) {
    void *made = NULL;
    if (posix_memalign(&made, align, size))
        abort();
    return memset(made, 0, size);
}
void guest_fail(const char *format, ...) {
    fprintf(stderr, "net_fuzz: %s\n", format);
    abort();
}

static struct ring out, in; /* the other side's */
static void *rings[2];

int channel_open_end(struct channel *channel, const struct guest_channel *end) {
    *channel = (struct channel){.end = end};
    CHECK(!ring_open(&channel->ring, rings[end->role], RING, end->max_message, 0));
    if (end->role == GUEST_ROLE_SEND)
        return ring_attach_producer(&channel->ring);
    ring_attach_consumer(&channel->ring);
    return 0;
}
void channel_spin(struct channel *channel, uint64_t ns) {
    channel->spin_ticks = ns;
}
void channel_ring(const struct channel *channel) {
    (void)channel;
}
int channel_reserve_slowly(struct channel *channel, size_t size, void **payload, uint64_t limit_ns) {
    (void)channel, (void)size, (void)payload, (void)limit_ns;
    return CHANNEL_TIMEOUT;
}
/* Nothing comes while one waits. */
int64_t channel_peek_slowly(struct channel *channel, const void **payload, uint64_t limit_ns) {
    (void)channel, (void)payload, (void)limit_ns;
    return CHANNEL_TIMEOUT;
}
int channel_select(struct channel *const *channels, size_t count, uint64_t limit_ns) {
    (void)channels, (void)count, (void)limit_ns;
    return CHANNEL_TIMEOUT;
}

static void set_up(uint64_t seed) {
    second = seed % 3 ? 100000 : 0;
    area.info.networks = (struct guest_span){offsetof(typeof(area), network), 1};
    area.info.channels = (struct guest_span){offsetof(typeof(area), channels), 2};
    area.network = (struct guest_network){.name = "lan", .prefix = 24, .address = OWN, .gateway = GATEWAY, .mtu = MTU, .out = 0,
                                          .in = 1, .hosts = {offsetof(typeof(area), hosts), 1}};
    memcpy(area.network.mac, MAC, 6);
    memcpy(area.names, "a\0b", 4);
    area.hosts[0] = (struct guest_host){.name = {offsetof(typeof(area), names) + 2, 1}, .address = 0x0a070003};
    for (uint32_t role = 0; role < 2; role++) {
        area.channels[role] = (struct guest_channel){.role = role, .size = RING, .max_message = 12 + LONGEST};
        rings[role] = guest_alloc(ring_bytes(RING), 64);
    }
    CHECK(!ring_open(&out, rings[0], RING, 12 + LONGEST, 0) && !ring_open(&in, rings[1], RING, 12 + LONGEST, 0));
    ring_attach_consumer(&out);
    CHECK(!ring_attach_producer(&in));
}

/* ---- what is to become of a frame -------------------------------------------------------------------------------------- */

static uint32_t be(const uint8_t *at, int size) {
    uint32_t value = 0;
    while (size--)
        value = value << 8 | *at++;
    return value;
}

/* RFC 1071, the slow way; a sum so far goes in. */
static uint32_t total(const uint8_t *at, size_t size, uint32_t sum) {
    for (size_t i = 0; i < size; i++) {
        sum += i % 2 ? at[i] : (uint32_t)at[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

enum fate { NOTHING, DATAGRAM, PONG, ARP };

struct verdict {
    enum fate fate;
    const uint8_t *data; /* of a datagram, or an echo request with its header */
    uint32_t size, address;
    uint32_t segment; /* bytes of each of several datagrams, but the last; or all */
    uint16_t from, to;
};

static int in_subnet(uint32_t address) {
    return address >> 8 == OWN >> 8;
}

static int is_station(uint32_t address) {
    uint32_t first = address >> 24, last = address & 255;
    return first != 0 && first != 127 && first < 224 && address != OWN && !(in_subnet(address) && (last == 0 || last == 255));
}

static struct verdict judge_arp(const uint8_t *frame, uint32_t size) {
    static const uint8_t fixed[6] = {0, 1, 8, 0, 6, 4};
    struct verdict verdict = {.fate = NOTHING};
    if (size < 42 || memcmp(frame + 14, fixed, 6) || be(frame + 20, 2) != 1 || be(frame + 38, 4) != OWN)
        return verdict;
    const uint8_t *mac = frame + 22;
    uint32_t sender = be(frame + 28, 4);
    if (mac[0] & 1 || !memcmp(mac, MAC, 6) || (!be(mac, 4) && !be(mac + 4, 2)))
        return verdict;
    if (sender && (!in_subnet(sender) || !is_station(sender)))
        return verdict;
    return (struct verdict){.fate = ARP, .data = mac, .address = sender};
}

static int undone(const struct net_offload *offload, uint32_t start, uint32_t offset) {
    if (offload->flags & 1)
        return offload->checksum_start == start && offload->checksum_offset == offset;
    return offload->flags & 2;
}

static struct verdict judge(const uint8_t *frame, uint32_t size, const struct net_offload *offload) {
    struct verdict nothing = {.fate = NOTHING};
    uint32_t type = be(frame + 12, 2), all = frame[0] & 1;
    if (!all && memcmp(frame, MAC, 6))
        return nothing;
    if (type == 0x0806)
        return judge_arp(frame, size);
    if (type != 0x0800 || size < 34 || frame[14] >> 4 != 4 || frame[6] & 1)
        return nothing;
    uint32_t header = (frame[14] & 15) * 4, whole = be(frame + 16, 2), source = be(frame + 26, 4), to = be(frame + 30, 4);
    if (header < 20 || whole < header || whole > size - 14 || (whole > MTU && !offload->segmentation) || total(frame + 14, header, 0) != 0xffff)
        return nothing;
    int everybody = to == 0xffffffff || to == (OWN | 255);
    if ((to != OWN && !everybody) || (all && !everybody) || !is_station(source) || be(frame + 20, 2) & 0x3fff)
        return nothing;
    const uint8_t *payload = frame + 14 + header;
    uint32_t left = whole - header, length;
    if (offload->segmentation &&
        (offload->segmentation != 5 || frame[23] != 17 || !(offload->flags & 1) || !undone(offload, 14 + header, 6)))
        return nothing;
    if (left < 8)
        return nothing;
    if (frame[23] == 1) {
        if (payload[0] != 8 || payload[1] || everybody)
            return nothing;
        if (!undone(offload, 14 + header, 2) && total(payload, left, 0) != 0xffff)
            return nothing;
        return (struct verdict){.fate = PONG, .data = payload, .size = left, .address = source};
    }
    length = be(payload + 4, 2);
    if (frame[23] != 17 || length < 8 || length > left)
        return nothing;
    uint32_t pseudo = total(frame + 26, 8, 17 + length);
    if (be(payload + 6, 2) && !undone(offload, 14 + header, 6) && total(payload, length, pseudo) != 0xffff)
        return nothing;
    return (struct verdict){.fate = DATAGRAM, .data = payload + 8, .size = length - 8, .address = source,
                            .segment = offload->segmentation ? offload->segment_size : length - 8, .from = (uint16_t)be(payload, 2), .to = (uint16_t)be(payload + 2, 2)};
}

/* ---- what sockets hold ------------------------------------------------------------------------------------------------- */

struct held {
    uint8_t *data;
    uint32_t size;
    struct udp_peer from;
};

static struct {
    struct udp_socket *socket;
    struct held held[HELD];
    uint32_t first, count;
} sockets[SOCKETS];

static int socket_of(uint16_t local) {
    for (int i = 0; i < SOCKETS; i++)
        if (sockets[i].socket && PORTS[i] == local)
            return i;
    return -1;
}

/* How many datagrams there are. */
static uint32_t pieces(const struct verdict *verdict) {
    return verdict->size ? (verdict->size + verdict->segment - 1) / verdict->segment : 1;
}

static struct held keep(const struct verdict *verdict, uint32_t piece) {
    uint32_t at = piece * verdict->segment, size = verdict->size - at < verdict->segment ? verdict->size - at : verdict->segment;
    struct held held = {.data = malloc(size + 1), .size = size, .from = {verdict->address, verdict->from}};
    memcpy(held.data, verdict->data + at, size);
    return held;
}

/* The socket has got all pieces from `first` on, but for `lost` of them. */
static void arrived(struct net_port *port, int i, const struct verdict *verdict, uint32_t first, uint32_t lost) {
    uint32_t count = pieces(verdict);
    if (lost && verdict->size % (verdict->segment + !verdict->segment)) {
        /* Was there room for the last one, which is shorter? Nobody can tell. */
        udp_close(sockets[i].socket);
        CHECK((sockets[i].socket = udp_open(port, PORTS[i])));
        for (; sockets[i].count; sockets[i].count--, sockets[i].first = (sockets[i].first + 1) % HELD)
            free(sockets[i].held[sockets[i].first].data);
        return;
    }
    for (uint32_t piece = first; piece < count - lost; piece++) {
        CHECK(sockets[i].count < HELD);
        sockets[i].held[(sockets[i].first + sockets[i].count++) % HELD] = keep(verdict, piece);
    }
    several += count > 1;
}

static void check_received(struct held held, const uint8_t *data, int64_t size, uint32_t room, struct udp_peer from) {
    CHECK(from.address == held.from.address && from.port == held.from.port);
    CHECK(held.size > room ? size == NET_TOO_LONG : size == held.size && !memcmp(data, held.data, held.size));
    too_long += size == NET_TOO_LONG;
    delivered++;
    free(held.data);
}

/* Receives at a socket; `coming` is what is next in the ring, and is freed. 1: that was received. */
static int receive(int i, struct held *coming) {
    uint32_t room = rnd(2) ? LONGEST : rnd(200);
    uint8_t *data = malloc(room);
    struct udp_peer from;
    int64_t size = udp_receive_from(sockets[i].socket, data, room, &from, rnd(2) ? 0 : 3000000);
    int came = 0;
    if (sockets[i].count) {
        check_received(sockets[i].held[sockets[i].first], data, size, room, from);
        sockets[i].first = (sockets[i].first + 1) % HELD;
        sockets[i].count--;
    } else if (coming) {
        check_received(*coming, data, size, room, from);
        came = 1;
        taken++;
    } else
        CHECK(size == NET_TIMEOUT);
    free(data);
    return came;
}

static void empty(int i) {
    while (sockets[i].count)
        receive(i, NULL);
}

/* ---- what is sent ------------------------------------------------------------------------------------------------------ */

/* The next frame sent, in a block of its own size, or NULL; checked: what holds of each. */
static uint8_t *next_sent(struct net_port *port, uint32_t *size, struct net_offload *offload) {
    const void *message;
    uint32_t whole;
    int result = ring_peek(&out, &message, &whole);
    if (result == SHM_EMPTY)
        return NULL;
    CHECK(!result && whole >= 12 + 14 && whole <= 12 + LONGEST);
    *size = whole - 12;
    memcpy(offload, message, 12);
    uint8_t *frame = malloc(*size);
    memcpy(frame, (const uint8_t *)message + 12, *size);
    ring_release(&out);
    CHECK(!memcmp(frame + 6, MAC, 6));
    if (be(frame + 12, 2) == 0x0800) {
        CHECK(*size >= 42 && be(frame + 16, 2) == *size - 14 && frame[14] == 0x45 && be(frame + 26, 4) == OWN);
        CHECK(total(frame + 14, 20, 0) == 0xffff);
    } else
        CHECK(be(frame + 12, 2) == 0x0806 && *size == 42 && be(frame + 28, 4) == OWN && !memcmp(frame + 22, MAC, 6));
    (void)port;
    return frame;
}

/* Nothing was sent, but for questions. */
static void check_quiet(struct net_port *port) {
    struct net_offload offload;
    uint32_t size;
    for (uint8_t *frame; (frame = next_sent(port, &size, &offload)); free(frame))
        CHECK(be(frame + 12, 2) == 0x0806 && be(frame + 20, 2) == 1);
}

/* The answer that a frame is due, and nothing else. `request` is the frame. */
static void check_answer(struct net_port *port, const struct verdict *verdict, const uint8_t *request) {
    struct net_offload offload;
    uint32_t size;
    uint8_t *frame = NULL;
    if (verdict->fate == PONG || verdict->fate == ARP) {
        frame = next_sent(port, &size, &offload);
        CHECK(frame && !offload.flags && !offload.segmentation);
        answered++;
    }
    if (verdict->fate == PONG) {
        CHECK(!memcmp(frame, request + 6, 6) && be(frame + 30, 4) == verdict->address && size == 34 + verdict->size);
        CHECK(!frame[34] && !frame[35] && total(frame + 34, size - 34, 0) == 0xffff);
        CHECK(!memcmp(frame + 38, verdict->data + 4, verdict->size - 4));
    } else if (verdict->fate == ARP) {
        CHECK(!memcmp(frame, verdict->data, 6) && !memcmp(frame + 32, verdict->data, 6));
        CHECK(be(frame + 20, 2) == 2 && be(frame + 38, 4) == verdict->address);
    }
    free(frame);
    check_quiet(port);
}

static void send_some(struct net_port *port) {
    static const uint32_t addresses[] = {0x0a070003, 0x0a070003, GATEWAY,    0x08080808, 0x0a0700ff, 0xffffffff,
                                         0xe0000001, 0,          0x0a070000, 0x7f000001, 0xf0000000, 0x0a070002};
    int i = (int)rnd(SOCKETS);
    if (!sockets[i].socket)
        return;
    uint32_t to = rnd(3) ? addresses[rnd(sizeof addresses / 4)] : 0x0a070000 + rnd(256), size = rnd(rnd(4) ? 100 : MTU), got;
    uint8_t *data = malloc(size);
    for (uint32_t k = 0; k < size; k++)
        data[k] = (uint8_t)rnd(256);
    struct net_offload offload;
    int result = udp_send_to(sockets[i].socket, to, 4242, data, size, rnd(8) ? 0 : 100000000);
    CHECK(size <= MTU - 28 || result == NET_TOO_LONG);
    CHECK(!result || result == NET_TOO_LONG || result == NET_NO_ROUTE || result == NET_UNREACHABLE);
    CHECK(result == NET_TOO_LONG || (result == NET_NO_ROUTE) == (!is_station(to) && to >> 28 != 14 && to != (OWN | 255) && ~to));
    refused += result != 0;
    uint8_t *frame = next_sent(port, &got, &offload);
    while (frame && be(frame + 12, 2) == 0x0806) { /* asked, or asked again */
        free(frame);
        frame = next_sent(port, &got, &offload);
    }
    CHECK(!frame == (result != 0));
    if (frame) {
        CHECK(got == 42 + size && be(frame + 30, 4) == to && frame[23] == 17 && !memcmp(frame + 42, data, size));
        CHECK(be(frame + 34, 2) == PORTS[i] && be(frame + 36, 2) == 4242 && be(frame + 38, 2) == 8 + size);
        CHECK(offload.flags == 1 && offload.checksum_start == 34 && offload.checksum_offset == 6 && !offload.segmentation);
        CHECK(be(frame + 40, 2) == total(frame + 26, 8, 17 + 8 + size));
        CHECK(frame[0] & 1 ? !is_station(to) : is_station(to));
        sent++;
        free(frame);
    }
    free(data);
}

/* ---- frames ------------------------------------------------------------------------------------------------------------ */

static void put(uint8_t *at, uint32_t value, int size) {
    while (size--)
        *at++ = (uint8_t)(value >> 8 * size);
}

static uint32_t some_address(void) {
    static const uint32_t odd[] = {0, 0xffffffff, 0x7f000001, 0xe0000001, 0x0a0700ff, 0x0a070000, 0x0a070002, 0x0a080001};
    return rnd(10) ? 0x0a070000 + 1 + rnd(8) : odd[rnd(8)];
}

static uint32_t some_arp(uint8_t *frame) {
    static const uint8_t fixed[6] = {0, 1, 8, 0, 6, 4};
    put(frame + 12, 0x0806, 2);
    memcpy(frame + 14, fixed, 6);
    put(frame + 20, 1 + rnd(2), 2);
    memcpy(frame + 22, PEER_MAC, 6);
    frame[27] = (uint8_t)rnd(4);
    put(frame + 28, some_address(), 4);
    memset(frame + 32, 0, 6);
    put(frame + 38, rnd(4) ? OWN : some_address(), 4);
    return 42 + rnd(2) * rnd(20);
}

/* A packet with right lengths, and the places of its checksums in *ip and *inner (0: none). */
static uint32_t some_packet(uint8_t *frame, uint32_t *inner) {
    uint32_t words = rnd(6) ? 5 : 5 + rnd(11), header = words * 4, size = rnd(rnd(3) ? 64 : MTU - header - 7);
    uint8_t *at = frame + 14 + header;
    put(frame + 12, 0x0800, 2);
    memset(frame + 14, rnd(256), header);
    frame[14] = (uint8_t)(0x40 + words);
    put(frame + 16, header + 8 + size, 2);
    put(frame + 20, rnd(30) ? rnd(2) << 14 : rnd(65536), 2);
    put(frame + 26, rnd(6) ? 0x0a070003 : some_address(), 4);
    put(frame + 30, rnd(6) ? OWN : rnd(2) ? OWN | 255 : some_address(), 4);
    for (uint32_t i = 0; i < 8 + size; i++)
        at[i] = (uint8_t)rnd(256);
    frame[23] = rnd(3) ? 17 : 1;
    if (frame[23] == 17) {
        put(at, rnd(65536), 2);
        put(at + 2, rnd(8) ? PORTS[rnd(SOCKETS)] : rnd(65536), 2);
        put(at + 4, rnd(40) ? 8 + size : rnd(8), 2);
        *inner = 14 + header + 6;
    } else {
        at[0] = rnd(8) ? 8 : (uint8_t)rnd(256);
        at[1] = rnd(8) == 0;
        *inner = 14 + header + 2;
    }
    return 14 + header + 8 + size + rnd(2) * rnd(10);
}

/* Makes the checksums right again, where they still can be. */
static void mend(uint8_t *frame, uint32_t size, uint32_t inner) {
    uint32_t header = (frame[14] & 15) * 4;
    if (size < 14 + 20 || size < 14 + header || header < 12)
        return;
    put(frame + 24, 0, 2);
    put(frame + 24, total(frame + 14, header, 0) ^ 0xffff, 2);
    uint32_t whole = be(frame + 16, 2);
    if (header < 20 || !inner || whole > size - 14 || whole < header + 8 || inner + 2 > 14 + whole)
        return;
    uint32_t length = frame[23] == 17 ? be(frame + 14 + header + 4, 2) : whole - header;
    if (length > whole - header || inner + 2 > 14 + header + length)
        return;
    put(frame + inner, 0, 2);
    put(frame + inner, total(frame + 14 + header, length, frame[23] == 17 ? total(frame + 26, 8, 17 + length) : 0) ^ 0xffff, 2);
}

static uint32_t some_frame(uint8_t *frame, struct net_offload *offload) {
    uint32_t inner = 0, size;
    memcpy(frame, MAC, 6);
    if (!rnd(8))
        memset(frame, rnd(3) ? 255 : 2, 6);
    memcpy(frame + 6, PEER_MAC, 6);
    size = rnd(4) ? some_packet(frame, &inner) : some_arp(frame);
    if (!rnd(3))
        for (uint32_t i = 1 + rnd(3); i; i--)
            frame[rnd(4) ? rnd(size < 64 ? size : 64) : rnd(size)] = (uint8_t)rnd(256);
    if (!rnd(8))
        size = 14 + rnd(size - 13);
    if (inner && !rnd(20)) { /* a packet that ends within its protocol's header */
        uint32_t header = (frame[14] & 15) * 4, left = rnd(8);
        put(frame + 16, header + left, 2);
        size = 14 + header + left;
    }
    if (size > LONGEST)
        size = LONGEST;
    if (rnd(6) && be(frame + 12, 2) == 0x0800)
        mend(frame, size, inner);
    memset(offload, 0, sizeof *offload);
    if (!rnd(5)) {
        offload->flags = (uint8_t)rnd(4);
        offload->segmentation = rnd(3) ? 0 : rnd(2) ? 5 : (uint8_t)rnd(256);
        offload->segment_size = (uint16_t)rnd(rnd(3) ? 20 : 2000);
        offload->checksum_start = (uint16_t)(rnd(6) ? 34 : rnd(size + 4));
        offload->checksum_offset = (uint16_t)(rnd(6) ? (frame[23] == 17 ? 6 : 2) : rnd(2000));
        offload->header_size = (uint16_t)rnd(65536);
    }
    return size;
}

/* Is the frame one that comes by a ring? */
static int passes(const struct net_offload *offload, uint32_t size) {
    return !(offload->flags & 1 && (uint32_t)offload->checksum_start + offload->checksum_offset + 2 > size) &&
           !(offload->segmentation && !offload->segment_size);
}

/* ---- a case ------------------------------------------------------------------------------------------------------------ */

/* At times hardly anybody reads, and queues become full. */
static int hoarding(void) {
    return number % 30000 >= 2000;
}

/* By the ring: then a call meets it. 1: a socket's receive took it. */
static int by_ring(struct net_port *port, const uint8_t *frame, uint32_t size, const struct net_offload *offload,
                   const struct verdict *verdict, int target) {
    uint8_t message[12 + LONGEST];
    int bell;
    memcpy(message, offload, 12);
    memcpy(message + 12, frame, size);
    CHECK(!ring_send(&in, message, size + 12, &bell));
    int i = (int)rnd(SOCKETS), took = 0;
    if ((hoarding() ? !rnd(8) : rnd(2)) && sockets[i].socket) {
        struct held coming;
        if (target == i)
            coming = keep(verdict, 0);
        uint32_t before = sockets[i].count;
        took = receive(i, target == i ? &coming : NULL);
        if (target == i && before)
            free(coming.data);
    } else if (rnd(2)) {
        const uint8_t *seen;
        int64_t found = net_peek(port, &seen, NULL, 0);
        int ours = be(frame + 12, 2) == 0x0800 || be(frame + 12, 2) == 0x0806;
        CHECK(ours || !passes(offload, size) ? found == NET_TIMEOUT : found == size && !memcmp(seen, frame, size));
        if (found >= 0)
            net_release(port);
    }
    CHECK(net_serve(port, 0) == NET_TIMEOUT);
    return took;
}

/* A message that has no whole header. */
static void one_runt(struct net_port *port) {
    uint8_t message[26] = {0};
    const uint8_t *seen;
    int bell;
    uint64_t before = net_counters(port)->runt;
    CHECK(!ring_send(&in, message, rnd(26), &bell));
    CHECK(net_peek(port, &seen, NULL, 0) == NET_TIMEOUT && net_counters(port)->runt == before + 1);
}

static void one_frame(struct net_port *port) {
    uint8_t bytes[LONGEST + 100];
    struct net_offload offload;
    uint32_t size = some_frame(bytes, &offload);
    uint8_t *frame = malloc(size);
    memcpy(frame, bytes, size);
    struct verdict verdict = {.fate = NOTHING};
    int possible = passes(&offload, size);
    if (possible)
        verdict = judge(frame, size, &offload);
    int target = verdict.fate == DATAGRAM ? socket_of(verdict.to) : -1, took = 0;
    uint64_t before = net_counters(port)->queue_full;
    check_quiet(port);
    if (possible && rnd(2))
        CHECK(port->input(port, &offload, frame, size) == (be(frame + 12, 2) == 0x0800 || be(frame + 12, 2) == 0x0806));
    else
        took = by_ring(port, frame, size, &offload, &verdict, target);
    check_answer(port, &verdict, frame);
    uint64_t lost = net_counters(port)->queue_full - before;
    /* One with a wrong checksum too: without room, nobody looks at it. */
    CHECK(lost <= (target < 0 ? 1 : pieces(&verdict) - (uint32_t)took));
    full += target >= 0 && lost;
    if (target >= 0)
        arrived(port, target, &verdict, (uint32_t)took, (uint32_t)lost);
    free(frame);
}

static void some_socket(struct net_port *port) {
    int i = (int)rnd(SOCKETS);
    if (!sockets[i].socket) {
        sockets[i].socket = udp_open(port, PORTS[i]);
        CHECK(sockets[i].socket && !udp_open(port, PORTS[i]) && net_why() == NET_IN_USE);
    } else if (rnd(2)) {
        empty(i);
    } else if (!rnd(3)) {
        empty(i);
        udp_close(sockets[i].socket);
        sockets[i].socket = NULL;
    }
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    set_up(strtoull(argv[1], NULL, 10));
    struct net_port *port = net_open("lan");
    CHECK(port && net_open(NULL) == port && !net_open("b") && !net_ip_open(port));
    CHECK(net_resolve("b") == 0x0a070003 && net_resolve("a.lan") == OWN && !net_resolve("c"));
    for (int i = 0; i < SOCKETS; i++)
        CHECK((sockets[i].socket = udp_open(port, PORTS[i])));
    uint64_t cases = strtoull(argv[2], NULL, 10);
    for (number = 0; number < cases; number++) {
        one_frame(port);
        if (!rnd(8))
            send_some(port);
        if (!rnd(50))
            one_runt(port);
        if (!hoarding() && !rnd(4))
            some_socket(port);
        resolved += port->ip->neighbours[rnd(NET_NEIGHBOURS)].known;
    }
    for (int i = 0; i < SOCKETS; i++)
        if (sockets[i].socket)
            empty(i);
    printf("%lu delivered (%lu past the queue, %lu too long), %lu answered, %lu sent, %lu refused, %lu without room, %lu of several\n",
           delivered, taken, too_long, answered, sent, refused, full, several);
    /* It must have come deep enough. */
    return delivered && taken && too_long && answered && sent && refused && full && several && resolved ? 0 : 3;
}
