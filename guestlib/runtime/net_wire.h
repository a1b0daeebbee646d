/* net_wire.h: headers as they are on the wire, where numbers have their high byte first. Not for programs. */
#ifndef NET_WIRE_H
#define NET_WIRE_H

#include <stdint.h>

#define ETHERNET_IPV4 0x0800
#define ETHERNET_ARP 0x0806

#define ARP_ETHERNET 1
#define ARP_REQUEST 1
#define ARP_REPLY 2

#define IPV4_ICMP 1
#define IPV4_UDP 17
#define IPV4_DONT_FRAGMENT 0x4000
#define IPV4_FRAGMENT 0x3fff /* more fragments follow, or an offset */
#define IPV4_TTL 64

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8

struct wire_ethernet {
    uint8_t destination[6], source[6];
    uint16_t type;
} __attribute__((packed));

/* RFC 826, for IPv4 over Ethernet. */
struct wire_arp {
    uint16_t hardware, protocol;
    uint8_t hardware_size, protocol_size;
    uint16_t operation;
    uint8_t sender_mac[6];
    uint32_t sender;
    uint8_t target_mac[6];
    uint32_t target;
} __attribute__((packed));

/* RFC 791 */
struct wire_ipv4 {
    uint8_t version_words;
    uint8_t service;
    uint16_t size, identification, fragment;
    uint8_t ttl, protocol;
    uint16_t checksum;
    uint32_t source, destination;
} __attribute__((packed));

/* RFC 792 */
struct wire_icmp {
    uint8_t type, code;
    uint16_t checksum;
    uint16_t identifier, sequence;
} __attribute__((packed));

/* RFC 768 */
struct wire_udp {
    uint16_t source, destination, size, checksum;
} __attribute__((packed));

static inline uint16_t wire16(uint16_t value) {
    return __builtin_bswap16(value);
}

static inline uint32_t wire32(uint32_t value) {
    return __builtin_bswap32(value);
}

/*
 * The Internet checksum (RFC 1071), of bytes as they stand: a sum so far, and what goes into a header. All but the last
 * piece have an even size. Not more than 16 MiB in all.
 */
static inline uint64_t wire_sum(const void *data, uint64_t size, uint64_t sum) {
    const uint8_t *bytes = data;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        __builtin_memcpy(&word, bytes, 8);
        sum += (uint32_t)word + (word >> 32);
    }
    for (; size >= 2; size -= 2, bytes += 2) {
        uint16_t word;
        __builtin_memcpy(&word, bytes, 2);
        sum += word;
    }
    return size ? sum + *bytes : sum;
}

static inline uint16_t wire_fold(uint64_t sum) {
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

#endif
