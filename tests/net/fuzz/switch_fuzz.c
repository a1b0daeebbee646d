/*
 * switch_fuzz.c: a whole switch with ring ports, two of whose peers write what they like into their rings, send what no
 * network card would, and cut their memory short, in part from a thread of their own, under the address and
 * undefined-behaviour sanitizers. Two peers that behave check what they get.
 *
 *     switch_fuzz SEED CASES
 */
#include "switch.c"

#include <shm/ring.h>
#include <stdio.h>
#include <sys/mman.h>

#include "offload.h"
#include "ring_port.h"

#define CHECK(x)                                                                                      \
    do {                                                                                              \
        if (!(x)) {                                                                                   \
            fprintf(stderr, "case %lu, line %d: %s\n", (unsigned long)case_number, __LINE__, #x);    \
            abort();                                                                                  \
        }                                                                                             \
    } while (0)

static uint64_t case_number;

/* --- random numbers (xorshift64*, seeded by splitmix64), a stream for each thread and case --- */

static __thread uint64_t state;

static void seed_with(uint64_t seed, uint64_t number) {
    uint64_t x = (seed << 40) + number + 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    state = (x ^ (x >> 31)) | 1;
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

/* What breaks arithmetic: edges, near `size`, below it, anything. */
static uint64_t nasty(uint64_t size) {
    static const uint64_t edges[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32, 1ull << 63, UINT64_MAX};
    switch (below(4)) {
    case 0:
        return edges[below(8)];
    case 1:
        return size + below(5) - 2;
    case 2:
        return below(size);
    default:
        return next();
    }
}

/* --- peers --- */

enum { GOOD, PLAIN, BAD, SHUT, PEERS };
/* GOOD takes what is unsegmented, PLAIN takes nothing undone; BAD sends from any address; SHUT is isolated and has its own. */
enum { MTU = 1500, RING = 1 << 18, MESSAGE = OFFLOAD_SIZE + FRAME_MAX, CANARY = 4096, BELLS = 4, TEST_TYPE = 0xb588 };
enum { SPAN = (sizeof(struct ring_shared) + RING + 4095) / 4096 * 4096, REGION = 2 * SPAN + 2 * CANARY };

struct peer {
    int file, bells[BELLS];
    char *region;       /* out, canary, in, canary; nothing is mapped before and behind */
    struct shm_config out_config, in_config;
    struct ring out, in;
    struct port *port;  /* NULL: it has none now */
    uint8_t mac[6];
    int cut;            /* its memory was cut short since it was made */
    uint32_t sent[PEERS], got[PEERS]; /* numbers of the last frames to, and from, each */
};

static struct peer peers[PEERS];
static struct net_switch *sw;
static const uint8_t canary[CANARY] = {0xc5};

static void map_region(struct peer *peer) {
    CHECK(!ftruncate(peer->file, 0) && !ftruncate(peer->file, REGION));
    CHECK(mmap(peer->region, REGION, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, peer->file, 0) == peer->region);
}

static void make_peer(struct peer *peer, int number) {
    peer->file = memfd_create("peer", MFD_CLOEXEC);
    char *around = mmap(NULL, REGION + 2 * RING, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(peer->file >= 0 && around != MAP_FAILED);
    peer->region = around + RING;
    static uint32_t lost; /* Peers use the very mapping that the switch does, also while they have no port. */
    CHECK(!fault_guard(around, REGION + 2 * RING, &lost));
    map_region(peer);
    for (int i = 0; i < BELLS; i++)
        CHECK((peer->bells[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) >= 0);
    memcpy(peer->mac, (uint8_t[]){2, 0, 0, 0, 0, (uint8_t)number}, 6);
    uint32_t message = number == PLAIN ? OFFLOAD_SIZE + MTU + 18 : MESSAGE;
    peer->out_config = (struct shm_config){.kind = SHM_SPSC, .size = RING, .max_message = MESSAGE, .data_bell = 0, .space_bell = 1};
    peer->in_config = (struct shm_config){.kind = SHM_SPSC, .offset = SPAN + CANARY, .size = RING, .max_message = message,
                                          .data_bell = 2, .space_bell = 3};
    if (number == BAD) { /* It is soon full. */
        peer->in_config.size = 8192;
        peer->in_config.max_message = OFFLOAD_SIZE + MTU + 18;
    }
}

static void fresh_memory(struct peer *peer) {
    map_region(peer);
    peer->cut = 0;
    memcpy(peer->region + SPAN, canary, CANARY);
    memcpy(peer->region + REGION - CANARY, canary, CANARY);
}

static void check_canaries(const struct peer *peer) {
    if (peer->cut)
        return;
    CHECK(!memcmp(peer->region + SPAN, canary, CANARY));
    CHECK(!memcmp(peer->region + REGION - CANARY, canary, CANARY));
}

static struct port *new_port(struct peer *peer, int number) {
    static const char *const names[PEERS] = {"good", "plain", "bad", "shut"};
    const char *field = NULL;
    struct port *port = ring_port_new(names[number], peer->region, REGION, &peer->out_config, &peer->in_config, peer->bells, BELLS,
                                      &field);
    CHECK(port || (errno == EINVAL && field) || errno == EBADMSG);
    return port;
}

static void join(int number) {
    struct peer *peer = &peers[number];
    struct port *port = new_port(peer, number);
    if (!port)
        return; /* What a hostile peer left in its rings can't be taken over. */
    memcpy(port->mac, peer->mac, 6);
    if (number != BAD)
        port->flags |= PORT_FIXED_MAC;
    if (number == SHUT)
        port->flags |= PORT_ISOLATED;
    if (number == PLAIN)
        port->flags &= ~(uint32_t)(PORT_TAKES_CSUM | PORT_TAKES_TSO4 | PORT_TAKES_TSO6 | PORT_TAKES_USO);
    if (number > PLAIN && !below(4))
        port->rate = nasty(1 << 20);
    CHECK(switch_add(sw, port) > 0);
    peer->port = port;
}

static void leave(struct peer *peer) {
    if (!peer->port)
        return;
    CHECK(!switch_remove(sw, peer->port->id));
    peer->port = NULL;
    check_canaries(peer);
}

/* --- those who behave --- */

static uint32_t sum_of(const uint8_t *bytes, uint32_t size) {
    uint32_t sum = size;
    for (uint32_t i = 0; i < size; i++)
        sum = (sum ^ bytes[i]) * 0x01000193;
    return sum;
}

/* A frame of theirs: header, whose and for whom, number, anything, sum. */
struct text {
    uint8_t to[6], from[6];
    uint16_t type;
    uint8_t to_peer, from_peer;
    uint32_t number;
    uint8_t rest[1480];
} __attribute__((packed));

static void send_text(int from, int to) {
    struct peer *peer = &peers[from];
    struct text text = {.type = TEST_TYPE, .to_peer = (uint8_t)to, .from_peer = (uint8_t)from, .number = ++peer->sent[to]};
    uint32_t size = offsetof(struct text, rest) + 4 + (uint32_t)below(sizeof text.rest - 3);
    memcpy(text.to, peers[to].mac, 6);
    memcpy(text.from, peer->mac, 6);
    for (uint8_t *at = text.rest; at < (uint8_t *)&text + size; at++)
        *at = (uint8_t)next();
    uint32_t sum = sum_of((uint8_t *)&text, size - 4);
    memcpy((uint8_t *)&text + size - 4, &sum, 4);
    uint8_t message[OFFLOAD_SIZE + sizeof text] = {0};
    memcpy(message + OFFLOAD_SIZE, &text, size);
    int bell = 0;
    int sent = ring_send(&peer->out, message, OFFLOAD_SIZE + size, &bell);
    CHECK(sent == SHM_OK || sent == SHM_FULL);
    if (sent == SHM_FULL)
        peer->sent[to]--;
}

static void check_text(int at, const uint8_t *bytes, uint32_t size) {
    struct text text;
    uint32_t sum;
    CHECK(size >= offsetof(struct text, rest) + 4 && size <= sizeof text);
    memcpy(&text, bytes, size);
    memcpy(&sum, bytes + size - 4, 4);
    CHECK(sum == sum_of(bytes, size - 4));
    CHECK(text.type == TEST_TYPE && text.from_peer <= PLAIN && !memcmp(text.from, peers[text.from_peer].mac, 6));
    if (text.to_peer != at) { /* A flood: nobody knew where its receiver is. */
        CHECK(text.to_peer == BAD || !peers[text.to_peer].port);
        return;
    }
    CHECK(text.number > peers[at].got[text.from_peer] && text.number <= peers[text.from_peer].sent[at]);
    peers[at].got[text.from_peer] = text.number;
}

static void check_frame(int at, const uint8_t *message, uint32_t size) {
    struct virtio_net_hdr_v1 offload;
    CHECK(size >= OFFLOAD_SIZE + FRAME_HEADER);
    memcpy(&offload, message, sizeof offload);
    const uint8_t *bytes = message + OFFLOAD_SIZE;
    size -= OFFLOAD_SIZE;
    CHECK(offload.gso_type ? size <= FRAME_MAX : size <= MTU + 18);
    if (at == PLAIN)
        CHECK(!offload.gso_type && !(offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM));
    CHECK(!peers[SHUT].port || memcmp(bytes + 6, peers[SHUT].mac, 6)); /* There is no uplink, so nobody hears it. */
    CHECK(memcmp(bytes + 6, peers[at].mac, 6));
    for (int from = GOOD; from <= PLAIN; from++)
        if (!memcmp(bytes + 6, peers[from].mac, 6))
            check_text(at, bytes, size);
}

static uint32_t receive(int at) {
    struct peer *peer = &peers[at];
    static uint8_t message[MESSAGE];
    uint32_t count = 0;
    int bell = 0;
    for (int64_t size; (size = ring_receive(&peer->in, message, sizeof message, &bell)) != SHM_EMPTY; count++) {
        CHECK(size > 0);
        check_frame(at, message, (uint32_t)size);
    }
    return count;
}

/* --- those who don't --- */

static uint64_t *field_of(const struct ring *ring) {
    static const uint32_t offsets[] = {0, 64, 128, 192, 256, 320};
    return (uint64_t *)((char *)ring->shared + offsets[below(6)]);
}

static void poke(struct peer *peer) {
    struct ring *out = &peer->out, *in = &peer->in;
    uint64_t *place, value;
    switch (below(6)) {
    case 0: /* The header that is due, with a length that need not be. */
        place = ring_header(out, out->position);
        value = (below(4) ? nasty(MESSAGE) : RING_PAD) << 32 | ring_sequence(out->position);
        break;
    case 1: /* What it has received. */
        place = &in->shared->head;
        value = shm_load64(&in->shared->tail) - nasty(in->mask + 1);
        break;
    case 2:
        place = ring_header(in, shm_load64(&in->shared->tail) + below(3) - 1);
        value = next();
        break;
    case 3:
        place = ring_header(out, below(out->mask + 1));
        value = nasty(MESSAGE) << 32 | ring_sequence(out->position + below(3) - 1);
        break;
    case 4:
        place = field_of(out);
        value = nasty(out->mask);
        break;
    default:
        place = field_of(in);
        value = nasty(in->mask);
    }
    __atomic_store_n(place, value, __ATOMIC_RELAXED);
}

/* It makes room, as those who behave do. */
static void receive_all(struct peer *peer) {
    shm_store64(&peer->in.shared->head, shm_load64(&peer->in.shared->tail));
}

static uint32_t fill_ip(uint8_t *bytes, uint32_t size) {
    int six = below(3) == 0, udp = below(3) == 0;
    uint32_t header = six ? 40 : 20;
    if (size < FRAME_HEADER + header + 20)
        return FRAME_HEADER;
    bytes[12] = six ? 0x86 : 8;
    bytes[13] = six ? 0xdd : 0;
    uint8_t *ip = bytes + FRAME_HEADER;
    memset(ip, 0, header + 20);
    ip[0] = six ? 0x60 : 0x45;
    uint32_t length = size - FRAME_HEADER - (six ? 40 : 0);
    ip[six ? 4 : 2] = (uint8_t)(length >> 8);
    ip[six ? 5 : 3] = (uint8_t)length;
    ip[six ? 6 : 9] = udp ? 17 : 6;
    ip[header + 12] = udp ? 0 : 0x50;
    return FRAME_HEADER + header;
}

/* A message as a driver would send it, but for some of its fields. */
static void send_anything(struct peer *peer) {
    static uint8_t message[MESSAGE];
    uint32_t most = below(4) ? 200 : below(2) ? 2000 : MESSAGE;
    uint32_t size = below(20) ? OFFLOAD_SIZE + FRAME_HEADER + (uint32_t)below(most - OFFLOAD_SIZE - FRAME_HEADER + 1) : (uint32_t)below(30);
    struct virtio_net_hdr_v1 offload = {0};
    uint8_t *bytes = message + OFFLOAD_SIZE;
    for (uint32_t i = 0; i < 64; i++)
        message[i] = (uint8_t)next();
    memcpy(bytes, peers[below(PEERS)].mac, 6);
    if (!below(4))
        memset(bytes, 0xff, 6);
    memcpy(bytes + 6, peers[below(3) ? (uint64_t)(peer - peers) : below(PEERS)].mac, 6);
    if (!below(4))
        bytes[11] = (uint8_t)next();
    if (below(2) && size > OFFLOAD_SIZE + FRAME_HEADER) {
        static const uint8_t kinds[] = {0, 1, 4, 5, 3, 0x81, 0x84};
        offload.csum_start = (uint16_t)fill_ip(bytes, size - OFFLOAD_SIZE);
        offload.csum_offset = below(2) ? 16 : 6;
        offload.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        offload.gso_type = kinds[below(7)];
        offload.gso_size = (uint16_t)(below(2) ? 1 + below(1448) : nasty(1448));
        offload.hdr_len = (uint16_t)nasty(100);
        if (!below(4))
            offload.csum_start = (uint16_t)nasty(size);
        if (!below(8))
            offload.gso_type = (uint8_t)next();
        if (!below(8))
            offload.flags = (uint8_t)next();
    }
    if (!below(5)) {
        bytes[12] = 0x81;
        bytes[13] = 0;
    }
    memcpy(message, &offload, sizeof offload);
    int bell;
    ring_send(&peer->out, message, size, &bell); /* It may have spoiled its ring before. */
}

static void reattach(struct peer *peer) {
    const struct shm_config *out = &peer->out_config, *in = &peer->in_config;
    CHECK(!ring_open(&peer->out, (struct ring_shared *)(peer->region + out->offset), out->size, out->max_message, 0));
    CHECK(!ring_open(&peer->in, (struct ring_shared *)(peer->region + in->offset), in->size, in->max_message, 0));
}

/* Also one whose configuration can't be. */
static void come_again(int number) {
    struct peer *peer = &peers[number];
    leave(peer);
    if (below(2))
        fresh_memory(peer);
    struct shm_config out = peer->out_config, in = peer->in_config;
    uint64_t values[] = {nasty(REGION), nasty(RING)};
    struct shm_config *spoiled = below(2) ? &peer->out_config : &peer->in_config;
    switch (below(8)) {
    case 0:
        spoiled->offset = values[0];
        break;
    case 1:
        spoiled->size = values[1];
        break;
    case 2:
        spoiled->max_message = (uint32_t)values[1];
        break;
    case 3:
        spoiled->data_bell = (uint32_t)nasty(BELLS);
        spoiled->kind = (uint32_t)below(3);
        break;
    default:
        break;
    }
    int changed = memcmp(&out, &peer->out_config, sizeof out) || memcmp(&in, &peer->in_config, sizeof in);
    if (changed) { /* If it can be used, it may lie over the canaries: it is made and closed, no more. */
        struct port *port = new_port(peer, number);
        if (port)
            port->ops->close(port);
        peer->out_config = out, peer->in_config = in;
        fresh_memory(peer);
    }
    reattach(peer);
    peer->out.position = below(2) ? peer->out.shared->tail : 0;
    join(number);
}

/* --- their thread --- */

enum { QUIET, MAY, DOES, END };
static uint32_t scribbling;
static uint64_t scribbled;

static int change(uint32_t from, uint32_t to) {
    return __atomic_compare_exchange_n(&scribbling, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static void *scribble(void *seed) {
    struct timespec nap = {.tv_nsec = 20000};
    for (uint64_t number = 0; __atomic_load_n(&scribbling, __ATOMIC_ACQUIRE) != END; number++) {
        if (change(MAY, DOES)) {
            seed_with((uintptr_t)seed + 1000, number);
            for (int i = 0; i < 20; i++)
                poke(&peers[BAD + below(2)]);
            scribbled++;
            change(DOES, MAY);
        }
        nanosleep(&nap, NULL);
    }
    return NULL;
}

/* Also waits until it has stopped. */
static void let_scribble(uint32_t may) {
    for (uint32_t now; (now = __atomic_load_n(&scribbling, __ATOMIC_ACQUIRE)) != may;)
        if (now == DOES || !change(now, may))
            sched_yield();
}

/* --- a case --- */

static uint64_t arrived, ended[PORT_ERRORS];

static void cut(struct peer *peer) {
    peer->cut = 1;
    CHECK(!ftruncate(peer->file, below(2) ? 0 : (off_t)(below(REGION / 4096) * 4096)));
}

static void look_around(void) {
    struct switch_address found[64];
    uint32_t count = switch_addresses(sw, found, 64);
    CHECK(count <= 64);
    for (uint32_t i = 0; i < count; i++)
        CHECK(switch_port(sw, found[i].port));
}

static void step(int may_cut) {
    switch (below(12)) {
    case 0: case 1: case 2:
        send_text(GOOD, PLAIN);
        break;
    case 3: case 4:
        send_text(PLAIN, GOOD);
        break;
    case 5:
        send_text(below(2) ? GOOD : PLAIN, below(2) ? BAD : SHUT);
        break;
    case 6: case 7: case 8:
        for (uint64_t i = below(20); i; i--)
            send_anything(&peers[BAD + below(2)]);
        break;
    case 9:
        if (!below(3))
            poke(&peers[BAD + below(2)]);
        break;
    case 10:
        if (!below(6)) {
            let_scribble(QUIET);
            come_again(BAD + (int)below(2));
        } else {
            receive_all(&peers[BAD + below(2)]);
        }
        break;
    default:
        if (may_cut && !below(10)) {
            let_scribble(QUIET); /* It has no guard against what it does to itself. */
            cut(&peers[BAD + below(2)]);
        }
    }
    if (!below(3)) {
        sw->now_ns += below(2) ? 1000 : 1000000000;
        forward_round(sw);
        arrived += receive(GOOD) + receive(PLAIN);
    }
    if (!below(40)) {
        nudge(sw); /* So that it doesn't sleep long. */
        CHECK(!rest(sw));
        look_around();
    }
}

static void run_case(uint64_t seed, uint64_t number) {
    seed_with(seed, number);
    case_number = number;
    struct switch_config config = {.mtu = MTU, .age = 1 + (uint32_t)below(10), .addresses = 8, .spin = 0};
    CHECK((sw = switch_new(&config)));
    sw->now_ns = switch_now_ns();
    for (int i = 0; i < PEERS; i++) {
        fresh_memory(&peers[i]);
        reattach(&peers[i]);
        memset(peers[i].sent, 0, sizeof peers[i].sent);
        memset(peers[i].got, 0, sizeof peers[i].got);
        join(i);
        CHECK(peers[i].port);
    }
    int may_scribble = !below(4), may_cut = below(2);
    for (int i = 0; i < 150; i++) {
        if (may_scribble && !below(10))
            let_scribble(MAY);
        step(may_cut);
    }
    let_scribble(QUIET);
    /* They get everything now that they have room: nothing that the others did held it up. */
    forward_round(sw);
    receive(GOOD), receive(PLAIN);
    for (int i = 0; i < 3; i++) {
        send_text(GOOD, PLAIN);
        send_text(PLAIN, GOOD);
        forward_round(sw);
        forward_round(sw);
        receive(GOOD), receive(PLAIN);
        CHECK(peers[PLAIN].got[GOOD] == peers[GOOD].sent[PLAIN] && peers[GOOD].got[PLAIN] == peers[PLAIN].sent[GOOD]);
    }
    CHECK(!peers[GOOD].port->quarantined && !peers[PLAIN].port->quarantined);
    for (int i = BAD; i < PEERS; i++)
        if (peers[i].port)
            ended[peers[i].port->quarantined]++;
    for (int i = 0; i < PEERS; i++) {
        leave(&peers[i]);
    }
    switch_free(sw);
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, cases = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000;
    for (int i = 0; i < PEERS; i++)
        make_peer(&peers[i], i);
    pthread_t thread;
    for (int i = 0; i < PEERS; i++) {
        fresh_memory(&peers[i]);
        reattach(&peers[i]);
    }
    CHECK(!pthread_create(&thread, NULL, scribble, (void *)(uintptr_t)seed));
    for (uint64_t number = 0; number < cases; number++)
        run_case(seed, number);
    let_scribble(END);
    pthread_join(thread, NULL);
    printf("%lu cases, %lu frames arrived, %lu times scribbled; quarantined: %lu ring, %lu memory gone; %lu not\n",
           (unsigned long)cases, (unsigned long)arrived, (unsigned long)scribbled, (unsigned long)ended[PORT_E_RING],
           (unsigned long)ended[PORT_E_FAULT], (unsigned long)ended[PORT_OK]);
    return 0;
}
