/* net_ip.h: IPv4 on a port, for the parts of the runtime that it is made of. Not for programs. */
#ifndef NET_IP_H
#define NET_IP_H

#include "net_port.h"
#include "net_wire.h"

#define NET_NEIGHBOURS 64
#define NET_HEADERS (sizeof(struct wire_ethernet) + sizeof(struct wire_ipv4))

/* Somebody in the subnet whom this guest asked for. Nobody else is remembered: the table can't be filled by others. */
struct net_neighbour {
    uint32_t address;       /* 0: free */
    uint8_t mac[6];
    uint8_t known;
    uint64_t heard, asked;  /* ticks */
};

struct udp_socket;
struct net_packet;

struct net_ip {
    uint32_t address, mask, gateway;
    uint64_t second;        /* in ticks; 0: unknown, and nothing grows old */
    struct net_neighbour neighbours[NET_NEIGHBOURS];
    /* Takes a datagram; NULL where no socket was opened. */
    void (*udp)(struct net_port *port, const struct net_packet *packet);
    struct udp_socket *sockets;
};

/* A packet for this guest. The header was copied and checked; the payload is in the ring, its sender's to change. */
struct net_packet {
    uint8_t from_mac[6];
    uint8_t protocol;
    uint8_t broadcast;      /* for all, not for this guest alone */
    uint32_t source, destination;
    uint32_t start;         /* of the payload, in the frame */
    uint32_t size;          /* of the payload */
    const uint8_t *payload;
    const struct net_offload *offload;
};

/* Lets a port serve IPv4, and tells the network so: 0, NET_NO_ADDRESS, NET_NO_MEMORY. A second time does nothing. */
int net_ip_open(struct net_port *port);

/* Waits for a frame and sees to it, if it is IPv4's: 0, NET_TIMEOUT, NET_CORRUPT. */
int net_ip_step(struct net_port *port, struct net_limit *limit);

/* Writes an Ethernet and an IPv4 header (NET_HEADERS bytes) for `size` bytes behind them. */
void net_ip_headers(const struct net_port *port, uint8_t *at, const uint8_t mac[6], uint32_t destination, uint8_t protocol,
                    uint32_t size);

/* The station that a packet for `destination` goes to: 0, NET_NO_ROUTE, NET_UNREACHABLE, NET_CORRUPT. May wait. */
int net_ip_route(struct net_port *port, uint32_t destination, uint8_t mac[6], struct net_limit *limit);

/* Is the checksum that stands `offset` bytes behind `start` one that need not be looked at? */
int net_ip_unchecked(const struct net_offload *offload, uint32_t start, uint32_t offset);

/* Is it an address of one host, which a packet can come from? */
int net_ip_is_host(const struct net_ip *ip, uint32_t address);

void net_arp_announce(struct net_port *port);
void net_arp_input(struct net_port *port, const uint8_t *frame, uint32_t size);
int net_arp_find(struct net_port *port, uint32_t address, uint8_t mac[6], struct net_limit *limit);
void net_icmp_input(struct net_port *port, const struct net_packet *packet);

static inline int net_is_group(const uint8_t mac[6]) {
    return mac[0] & 1;
}

static inline int net_same_mac(const uint8_t a[6], const uint8_t b[6]) {
    return memcmp(a, b, 6) == 0;
}

#endif
