/* offload.c: see offload.h. Offsets count from the frame's first byte. */
#include "offload.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stddef.h>
#include <string.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum {
    HEADERS_MAX = 256,    /* two VLAN tags, IPv6 with a few extension headers, TCP with all options */
    VLAN_TAGS = 2,
    SEGMENTS_MAX = 1366,  /* 64 KiB in segments of 48 bytes, the least that Linux makes: what one frame may cost */
    PIECES_ADDED = 2,     /* by a new header, or by a checksum put between two pieces */
    TCP_FLAGS = 13,       /* offset in the TCP header */
    TCP_FIN = 0x01,
    TCP_PSH = 0x08,
    TCP_CWR = 0x80,
};

/* What stands before the payload; read once, checked here, sent from here. */
struct headers {
    uint8_t bytes[HEADERS_MAX];
    uint32_t ip, transport, size; /* offsets: of the IP header, of the TCP or UDP header, of the payload */
    uint8_t version, protocol;    /* 4 or 6; IPPROTO_TCP or IPPROTO_UDP */
};

/* The sum of RFC 1071 over pieces of any length. */
struct sum {
    uint64_t total;
    int odd; /* an odd number of bytes came before */
};

static uint16_t fold(uint64_t total) {
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    return (uint16_t)total;
}

static void sum_add(struct sum *sum, const void *data, size_t size) {
    const uint8_t *at = data;
    uint64_t total = 0, word;
    size_t left = size;
    for (; left >= 8; left -= 8, at += 8) {
        memcpy(&word, at, 8);
        total += (word & 0xffffffff) + (word >> 32);
    }
    word = 0;
    memcpy(&word, at, left);
    total += (word & 0xffffffff) + (word >> 32);
    sum->total += sum->odd ? __builtin_bswap16(fold(total)) : fold(total);
    sum->odd ^= size & 1;
}

/* Where one is in a frame's pieces. */
struct cursor {
    const struct frame *frame;
    uint32_t piece;
    size_t offset;
};

/* What goes on where the last piece ends makes it longer. 0, or -1 where there is no room. */
static int append(struct frame *out, void *data, size_t size) {
    struct iovec *end = out->pieces + out->piece_count;
    if (out->piece_count && (uint8_t *)end[-1].iov_base + end[-1].iov_len == data)
        end[-1].iov_len += size;
    else if (out->piece_count < FRAME_PIECES)
        out->pieces[out->piece_count++] = (struct iovec){data, size};
    else
        return -1;
    out->size += (uint32_t)size;
    return 0;
}

/*
 * Goes on by `size` bytes, which are summed, and appended to `out`, where these are not NULL. The pieces' own lengths bound it;
 * 0, or -1 where they or the room in `out` end first.
 */
static int cursor_take(struct cursor *cursor, size_t size, struct frame *out, struct sum *sum) {
    while (size) {
        if (cursor->piece >= cursor->frame->piece_count)
            return -1;
        const struct iovec *piece = &cursor->frame->pieces[cursor->piece];
        size_t part = piece->iov_len - cursor->offset;
        if (part > size)
            part = size;
        uint8_t *at = (uint8_t *)piece->iov_base + cursor->offset;
        if (sum)
            sum_add(sum, at, part);
        if (out && part) {
            if (append(out, at, part))
                return -1;
        }
        size -= part;
        cursor->offset += part;
        if (cursor->offset == piece->iov_len) {
            cursor->piece++;
            cursor->offset = 0;
        }
    }
    return 0;
}

static void begin(struct frame *out, const struct frame *frame) {
    memcpy(out->ethernet, frame->ethernet, FRAME_HEADER);
    memset(&out->offload, 0, sizeof out->offload);
    out->piece_count = 0;
    out->size = 0;
}

/* One frame whose checksum is made over csum_start to its end, where its sender has left the pseudo header's sum. */
static int send_checksummed(struct port *to, const struct frame *frame) {
    uint32_t start = frame->offload.csum_start, field = start + frame->offload.csum_offset;
    if (start < FRAME_HEADER || field + 2 > frame->size)
        return DROP_UNFIT;
    struct frame out;
    struct cursor cursor = {.frame = frame};
    struct sum sum = {0};
    uint16_t checksum;
    begin(&out, frame);
    frame_copy(frame, field, &checksum, 2); /* read once: what is summed is what is replaced */
    if (cursor_take(&cursor, start, &out, NULL) || cursor_take(&cursor, field - start, &out, &sum))
        return DROP_UNFIT;
    sum_add(&sum, &checksum, 2);
    append(&out, &checksum, 2);
    if (cursor_take(&cursor, 2, NULL, NULL) || cursor_take(&cursor, frame->size - field - 2, &out, &sum))
        return DROP_UNFIT;
    checksum = (uint16_t)~fold(sum.total);
    if (!checksum)
        checksum = 0xffff; /* the same number; 0 would tell a UDP receiver that there is none */
    return to->ops->send(to, &out);
}

/* Reads a 16-bit field of the headers. */
static uint16_t field16(const struct headers *headers, uint32_t offset) {
    return (uint16_t)(headers->bytes[offset] << 8 | headers->bytes[offset + 1]);
}

/* Where the transport header of IPv6 begins, past headers that every receiver can skip; 0 for any others. */
static uint32_t skip_extensions(struct headers *headers, uint32_t room) {
    uint32_t at = headers->ip + sizeof(struct ip6_hdr);
    if (at > room)
        return 0;
    headers->protocol = headers->bytes[headers->ip + offsetof(struct ip6_hdr, ip6_nxt)];
    /* A fragment is no segment; a routing header would put another address into the checksum. */
    while (headers->protocol == IPPROTO_HOPOPTS || headers->protocol == IPPROTO_DSTOPTS) {
        if (at + 8 > room)
            return 0;
        headers->protocol = headers->bytes[at];
        at += 8u + 8u * headers->bytes[at + 1];
        if (at > room)
            return 0;
    }
    return at;
}

/* Copies the headers and finds their parts, all within what was copied: 0, or -1 where they don't match the offload. */
static int parse(struct headers *headers, const struct frame *frame, uint8_t gso) {
    uint32_t room = frame->size < HEADERS_MAX ? frame->size : HEADERS_MAX;
    memset(headers, 0, sizeof *headers);
    if (room < FRAME_HEADER)
        return -1;
    memcpy(headers->bytes, frame->ethernet, FRAME_HEADER);
    frame_copy(frame, FRAME_HEADER, headers->bytes + FRAME_HEADER, room - FRAME_HEADER);

    uint32_t at = FRAME_HEADER;
    uint16_t type = field16(headers, at - 2);
    for (int tag = 0; tag < VLAN_TAGS && (type == ETH_P_8021Q || type == ETH_P_8021AD); tag++) {
        at += 4;
        if (at > room)
            return -1;
        type = field16(headers, at - 2);
    }
    headers->ip = at;
    headers->version = at < room ? headers->bytes[at] >> 4 : 0;
    if (type == ETH_P_IP && headers->version == 4 && gso != VIRTIO_NET_HDR_GSO_TCPV6) {
        uint32_t length = 4u * (headers->bytes[at] & 15);
        if (length < sizeof(struct iphdr) || at + length > room)
            return -1;
        if (field16(headers, at + offsetof(struct iphdr, frag_off)) & 0x3fff) /* a fragment */
            return -1;
        headers->protocol = headers->bytes[at + offsetof(struct iphdr, protocol)];
        headers->transport = at + length;
    } else if (type == ETH_P_IPV6 && headers->version == 6 && gso != VIRTIO_NET_HDR_GSO_TCPV4) {
        headers->transport = skip_extensions(headers, room);
        if (!headers->transport)
            return -1;
    } else {
        return -1;
    }

    uint32_t length = sizeof(struct udphdr);
    if (headers->protocol != (gso == VIRTIO_NET_HDR_GSO_UDP_L4 ? IPPROTO_UDP : IPPROTO_TCP))
        return -1;
    if (headers->protocol == IPPROTO_TCP) {
        if (headers->transport + sizeof(struct tcphdr) > room)
            return -1;
        length = 4u * (headers->bytes[headers->transport + 12] >> 4);
        if (length < sizeof(struct tcphdr))
            return -1;
    }
    headers->size = headers->transport + length;
    return headers->size > room ? -1 : 0;
}

static void set16(struct headers *headers, uint32_t offset, uint32_t value) {
    headers->bytes[offset] = (uint8_t)(value >> 8);
    headers->bytes[offset + 1] = (uint8_t)value;
}

static uint32_t checksum_offset(const struct headers *headers) {
    return headers->protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check);
}

/* Lengths, and what counts up in IPv4, for a segment with `payload` bytes; the transport's checksum is set to the pseudo header's sum. */
static void finish_lengths(struct headers *headers, uint32_t payload, uint16_t id) {
    uint32_t ip = headers->ip, length = headers->size - headers->transport + payload;
    struct sum pseudo = {0};
    if (headers->version == 4) {
        set16(headers, ip + offsetof(struct iphdr, tot_len), headers->size - ip + payload);
        set16(headers, ip + offsetof(struct iphdr, id), id);
        set16(headers, ip + offsetof(struct iphdr, check), 0);
        struct sum sum = {0};
        sum_add(&sum, headers->bytes + ip, headers->transport - ip);
        uint16_t check = (uint16_t)~fold(sum.total);
        memcpy(headers->bytes + ip + offsetof(struct iphdr, check), &check, 2);
        sum_add(&pseudo, headers->bytes + ip + offsetof(struct iphdr, saddr), 8);
    } else {
        set16(headers, ip + offsetof(struct ip6_hdr, ip6_plen), headers->size - ip - sizeof(struct ip6_hdr) + payload);
        sum_add(&pseudo, headers->bytes + ip + offsetof(struct ip6_hdr, ip6_src), 32);
    }
    if (headers->protocol == IPPROTO_UDP)
        set16(headers, headers->transport + offsetof(struct udphdr, len), length);
    uint8_t rest[] = {0, headers->protocol, (uint8_t)(length >> 8), (uint8_t)length};
    sum_add(&pseudo, rest, sizeof rest);
    uint16_t check = fold(pseudo.total);
    memcpy(headers->bytes + headers->transport + checksum_offset(headers), &check, 2);
}

/* What differs in a TCP segment by its place: RFC 9293's flags of the end on the last only, RFC 3168's CWR on the first only. */
static void place_tcp(struct headers *headers, uint32_t sequence, uint8_t flags, int first, int last) {
    uint8_t *tcp = headers->bytes + headers->transport;
    sequence = htonl(sequence);
    memcpy(tcp + offsetof(struct tcphdr, seq), &sequence, 4);
    tcp[TCP_FLAGS] = flags & ~((first ? 0 : TCP_CWR) | (last ? 0 : TCP_FIN | TCP_PSH));
}

/* Sums the transport header and the payload in `out`, whose first piece is the headers, and writes the checksum. */
static void finish_checksum(struct headers *headers, const struct frame *out) {
    struct sum sum = {0};
    sum_add(&sum, headers->bytes + headers->transport, headers->size - headers->transport);
    for (uint32_t i = 1; i < out->piece_count; i++)
        sum_add(&sum, out->pieces[i].iov_base, out->pieces[i].iov_len);
    uint16_t check = (uint16_t)~fold(sum.total);
    if (!check && headers->protocol == IPPROTO_UDP)
        check = 0xffff;
    memcpy(headers->bytes + headers->transport + checksum_offset(headers), &check, 2);
}

static int send_segments(struct port *to, const struct frame *frame) {
    struct headers headers;
    uint32_t most = frame->offload.gso_size;
    if (parse(&headers, frame, frame->offload.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) || !most)
        return DROP_UNFIT;
    uint32_t left = frame->size - headers.size;
    if ((left + most - 1) / most > SEGMENTS_MAX)
        return DROP_UNFIT;
    if (headers.size + (left < most ? left : most) > to->max_frame)
        return DROP_OVERSIZE;

    uint32_t sequence = 0;
    uint16_t id = headers.version == 4 ? field16(&headers, headers.ip + offsetof(struct iphdr, id)) : 0;
    uint8_t flags = 0;
    if (headers.protocol == IPPROTO_TCP) {
        memcpy(&sequence, headers.bytes + headers.transport + offsetof(struct tcphdr, seq), 4);
        sequence = ntohl(sequence);
        flags = headers.bytes[headers.transport + TCP_FLAGS];
    }

    struct cursor cursor = {.frame = frame};
    if (cursor_take(&cursor, headers.size, NULL, NULL))
        return DROP_UNFIT;
    for (int first = 1; first || left; first = 0) {
        uint32_t payload = left < most ? left : most;
        struct frame out;
        begin(&out, frame);
        finish_lengths(&headers, payload, id++);
        if (headers.protocol == IPPROTO_TCP)
            place_tcp(&headers, sequence, flags, first, left == payload);
        append(&out, headers.bytes, headers.size);
        if (cursor_take(&cursor, payload, &out, NULL))
            return DROP_UNFIT;
        if (to->flags & PORT_TAKES_CSUM) {
            out.offload.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
            out.offload.csum_start = (uint16_t)headers.transport;
            out.offload.csum_offset = (uint16_t)checksum_offset(&headers);
        } else {
            finish_checksum(&headers, &out);
        }
        int result = to->ops->send(to, &out);
        if (result)
            return result;
        sequence += payload;
        left -= payload;
    }
    return 0;
}

static int send_finished(struct port *to, const struct frame *frame) {
    switch (frame->offload.gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
        return frame->offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? send_checksummed(to, frame) : to->ops->send(to, frame);
    case VIRTIO_NET_HDR_GSO_TCPV4:
    case VIRTIO_NET_HDR_GSO_TCPV6:
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        return send_segments(to, frame);
    default: /* whole UDP datagrams to be fragmented, or nothing known */
        return DROP_UNFIT;
    }
}

/* For the few frames in so many pieces that no more can be added: their bytes in one. */
static __attribute__((noinline)) int send_gathered(struct port *to, const struct frame *frame) {
    uint8_t bytes[FRAME_MAX];
    struct frame whole = {.size = frame->size, .offload = frame->offload, .piece_count = 1};
    memcpy(whole.ethernet, frame->ethernet, FRAME_HEADER);
    memcpy(bytes, frame->ethernet, FRAME_HEADER);
    frame_copy(frame, FRAME_HEADER, bytes + FRAME_HEADER, frame->size - FRAME_HEADER);
    whole.pieces[0] = (struct iovec){bytes, frame->size};
    return send_finished(to, &whole);
}

int offload_send(struct port *to, const struct frame *frame) {
    if (frame->size < FRAME_HEADER || frame->size > FRAME_MAX)
        return DROP_UNFIT;
    if (frame->piece_count > FRAME_PIECES - PIECES_ADDED)
        return send_gathered(to, frame);
    return send_finished(to, frame);
}
