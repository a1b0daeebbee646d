/*
 * offload_fuzz.c SEED CASES: frames with random headers, well made and then spoiled, for offload_send, under the address sanitizer.
 * Each piece is in memory of its own. Prints how many cases ran, were finished, were refused, and how many frames were sent.
 */
#include "harness.c"

#include <stdio.h>

static uint64_t state;

static uint32_t random_below(uint32_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit ? (uint32_t)(state >> 20) % limit : 0;
}

static uint32_t put16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
    return 2;
}

/* Headers of some kind there is an offload for; returns their size, and where the transport's begins. */
static uint32_t make_headers(uint8_t *bytes, uint32_t *transport, int *version, int *tcp) {
    uint32_t at = 12;
    *version = random_below(2) ? 4 : 6;
    *tcp = random_below(3) != 0;
    for (uint32_t tags = random_below(3); tags; tags--) {
        at += put16(bytes + at, random_below(2) ? 0x8100 : 0x88a8);
        at += put16(bytes + at, random_below(65536));
    }
    at += put16(bytes + at, *version == 4 ? 0x0800 : 0x86dd);
    uint32_t protocol = *tcp ? 6 : 17;
    if (*version == 4) {
        uint32_t words = 5 + random_below(11);
        memset(bytes + at, 1, 4 * words);
        bytes[at] = (uint8_t)(0x40 | words);
        put16(bytes + at + 6, random_below(2) ? 0x4000 : 0);
        bytes[at + 9] = (uint8_t)protocol;
        at += 4 * words;
    } else {
        memset(bytes + at, 1, 40);
        bytes[at] = 0x60;
        uint32_t next = at + 6;
        at += 40;
        for (uint32_t more = random_below(4); more; more--) {
            uint32_t length = random_below(4) ? 0 : random_below(6);
            bytes[next] = random_below(2) ? 0 : 60;
            memset(bytes + at, 0, 8 + 8 * length);
            bytes[at + 1] = (uint8_t)length;
            next = at;
            at += 8 + 8 * length;
        }
        bytes[next] = (uint8_t)protocol;
    }
    *transport = at;
    uint32_t words = *tcp ? 5 + random_below(11) : 2;
    memset(bytes + at, 0, 4 * words);
    if (*tcp)
        bytes[at + 12] = (uint8_t)(words << 4);
    return at + 4 * words;
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, cases = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;
    enum { ROOM = 1400 };
    static struct packed_frame from, to[ROOM];
    uint64_t finished = 0, refused = 0, sent = 0;
    state = seed * 0x9e3779b97f4a7c15u + 1;
    for (uint64_t i = 0; i < cases; i++) {
        uint32_t transport;
        int version, tcp;
        memset(from.bytes, (int)random_below(256), 600);
        uint32_t size = make_headers(from.bytes, &transport, &version, &tcp), headers = size;
        size += random_below(random_below(50) ? 2000 : FRAME_MAX - size);
        for (uint32_t spoil = random_below(3) ? 0 : 1 + random_below(4); spoil; spoil--)
            from.bytes[random_below(headers)] = (uint8_t)random_below(256);
        if (!random_below(8))
            size = FRAME_HEADER + random_below(headers);
        from.size = size;
        from.offload = (struct virtio_net_hdr_v1){
            .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
            .gso_type = !random_below(3) ? 0 : !tcp ? 5 : version == 4 ? 1 : 4,
            .gso_size = (uint16_t)random_below(random_below(4) ? 3000 : 65536),
            .csum_start = (uint16_t)(random_below(4) ? transport : random_below(65536)),
            .csum_offset = (uint16_t)(random_below(8) ? tcp ? 16 : 6 : random_below(65536)),
        };
        if (!random_below(16))
            from.offload.gso_type = (uint8_t)random_below(256);
        uint32_t cuts[FRAME_PIECES - 1], cut_count = random_below(FRAME_PIECES), count;
        for (uint32_t j = 0, at = 0; j < cut_count; j++)
            cuts[j] = at += random_below((random_below(2) ? 40 : size) < size - at ? 40 : size - at + 1);
        uint32_t max_frame = random_below(4) ? FRAME_MAX : 64 + random_below(2000);
        int result = harness_offload(&from, cuts, cut_count, random_below(2) ? PORT_TAKES_CSUM : 0, max_frame, to,
                                     random_below(16) ? ROOM : random_below(3), DROP_FULL, &count);
        if (result != 0 && result != DROP_UNFIT && result != DROP_OVERSIZE && result != DROP_FULL)
            abort();
        if (result == DROP_UNFIT || result == DROP_OVERSIZE ? count : !count && result == 0)
            abort();
        for (uint32_t j = 0; j < count; j++)
            if (to[j].size < FRAME_HEADER || ((from.offload.gso_type & 0x7f) && to[j].size > max_frame))
                abort();
        finished += result == 0;
        refused += result == DROP_UNFIT;
        sent += count;
    }
    printf("%llu cases, %llu finished, %llu refused, %llu frames\n", (unsigned long long)cases,
           (unsigned long long)finished, (unsigned long long)refused, (unsigned long long)sent);
    return 0;
}
