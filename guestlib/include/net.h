/*
 * net.h: a guest on networks: Ethernet frames, and UDP over IPv4. A program that wants it includes it beside guest.h.
 *
 * A port is this guest's place on one network of its cluster file. Frames go to and come from a switch by two rings in mapped
 * memory; on these the program sends and receives frames itself, or opens UDP sockets. Once a port has one (or net_serve was
 * called), ARP and ICMP echo requests are answered during each call that waits on it, and at no other time: this is one thread.
 *
 * Calls that can wait spin for a while, then sleep, until `limit_ns` has passed (0: not at all; GUEST_NO_LIMIT). They return
 * 0 (or a size), or one of the negative values below. A switch that is away, or restarted, is like a cable that is out: frames
 * are lost or wait, and no call fails for it before its limit.
 *
 * IPv4 addresses are numbers: 10.0.0.1 is 0x0a000001. What comes in was written by others: lengths and addresses are
 * checked here, the contents are the program's to judge.
 */
#ifndef NET_H
#define NET_H

#include "guest.h"

#define NET_TIMEOUT CHANNEL_TIMEOUT   /* the time limit passed */
#define NET_CORRUPT CHANNEL_CORRUPT   /* the switch broke a ring */
#define NET_TOO_LONG CHANNEL_TOO_LONG /* over the network's MTU (nothing is sent in fragments), or over the buffer */
#define NET_UNKNOWN (-30)             /* this guest is on no network of that name */
#define NET_NO_MEMORY (-31)           /* for a port or a socket */
#define NET_NO_ADDRESS (-32)          /* the network has no subnet, so this guest has no address there */
#define NET_IN_USE (-33)              /* another socket has that port */
#define NET_NO_ROUTE (-34)            /* not in the subnet, and there is no gateway; or nobody can have that address */
#define NET_UNREACHABLE (-35)         /* nobody says that the address is his */
#define NET_RUNT (-36)                /* shorter than an Ethernet header */

struct net_port;

/* What frames and datagrams came to; see net_counters. */
struct net_counters {
    uint64_t sent, received;  /* frames */
    uint64_t runt;            /* lost: shorter than their headers, or an offload header that can't be, */
    uint64_t foreign;         /* for another station, flooded here, */
    uint64_t unclaimed;       /* neither IPv4 nor ARP, or a protocol that is not spoken here, while UDP was waited for, */
    uint64_t malformed;       /* lengths or addresses that can't be, */
    uint64_t checksum;        /* spoiled on the way, */
    uint64_t fragment;        /* a part of a datagram, */
    uint64_t segments;        /* several packets in one frame, other than UDP's, */
    uint64_t no_socket;       /* to a port that nobody has open, */
    uint64_t queue_full;      /* for a socket that was not read, */
    uint64_t unanswered;      /* an answer, for which the ring had no room */
};

/* ---- ports ------------------------------------------------------------------------------------------------------------- */

/* The port on the network of that name (NULL: the first). The same at every call. NULL if there is none: net_why. */
struct net_port *net_open(const char *network);

/* Why net_open or udp_open returned NULL last: NET_UNKNOWN and others. */
int net_why(void);

/* A result in words, for messages to people. */
const char *net_error(int64_t result);

/* For programs that can't go on without: end the guest with a message when `result` is negative, or the port is missing. */
struct net_port *net_must_open(const char *network);
void net_failed(const char *what, int64_t result);
static inline void net_must(const char *what, int64_t result) {
    if (__builtin_expect(result < 0, 0))
        net_failed(what, result);
}

/* Its name, MAC address, IPv4 address, prefix, gateway and MTU. */
const struct guest_network *net_info(const struct net_port *port);
const struct net_counters *net_counters(const struct net_port *port);

/* Is a switch on the other side, now? */
int net_up(const struct net_port *port);

/* How long waits on this port spin before they sleep: 0, a time in ns, or CHANNEL_SPIN_ALWAYS. 20 us unless told. */
void net_spin(struct net_port *port, uint64_t ns);

/* The channel that frames come by: for a channel_select on channels and ports together. */
struct channel *net_inbox(struct net_port *port);

/* ---- frames ------------------------------------------------------------------------------------------------------------ */

#define NET_ETHERNET 14               /* bytes: destination, source, type */
#define NET_NEEDS_CHECKSUM 1          /* offload flags: the checksum is undone ... */
#define NET_CHECKED 2                 /* ... or was found to be right (in received frames only) */
#define NET_SEGMENTS_UDP 5            /* segmentation: several datagrams under one header; TCP's are 1 and 4 */

/*
 * What the sender of a frame left undone, zero for nothing (struct virtio_net_hdr_v1 of virtio 1.2, 5.1.6). With
 * NET_NEEDS_CHECKSUM: the sum over all from checksum_start on is to be put, complemented, at checksum_start + checksum_offset,
 * where that of the pseudo-header stands.
 */
struct net_offload {
    uint8_t flags;
    uint8_t segmentation;             /* kind; 0: one packet. A port's switch sends it none unless its MTU is 65535 */
    uint16_t header_size;
    uint16_t segment_size;            /* bytes behind each one's headers */
    uint16_t checksum_start;
    uint16_t checksum_offset;
    uint16_t buffers;                 /* of no meaning here */
};

/* Bytes of the longest frame: the MTU, the Ethernet header and a VLAN tag. */
uint32_t net_max_frame(const struct net_port *port);

/* Sends a copy of a frame, with its Ethernet header; `offload` may be NULL. Waits while the ring is full. */
int net_send(struct net_port *port, const void *frame, size_t size, const struct net_offload *offload, uint64_t limit_ns);

/*
 * Zero-copy: *frame is room for `size` bytes in the ring itself; net_commit sends that many, or fewer. No other call on
 * this port comes between. net_offload(*frame) is its offload header, all zero.
 */
int net_reserve(struct net_port *port, size_t size, uint8_t **frame, uint64_t limit_ns);
int net_commit(struct net_port *port, size_t size);
static inline struct net_offload *net_offload(uint8_t *frame) {
    return (struct net_offload *)(frame - sizeof(struct net_offload));
}

/*
 * Receives a copy of the next frame: its size, or NET_TOO_LONG if it is over `room`; then it stays. All frames that reach the
 * port come, those for others too that the switch floods; if the port serves IPv4 (a socket, net_serve), all but IPv4 and ARP.
 * *offload is what its sender left undone, checked against the size; whoever passes NULL gets frames as they are.
 */
int64_t net_receive(struct net_port *port, void *data, size_t room, struct net_offload *offload, uint64_t limit_ns);

/* Zero-copy: *frame is the next frame, in the ring until net_release, and its sender's to change: copy what must not. */
int64_t net_peek(struct net_port *port, const uint8_t **frame, struct net_offload *offload, uint64_t limit_ns);
void net_release(struct net_port *port);

/* ---- IPv4 -------------------------------------------------------------------------------------------------------------- */

#define NET_BROADCAST 0xffffffff      /* everybody on the network */

/*
 * The address of `name`: another guest's or this one's name, on the first of this guest's networks where it has an address;
 * NAME.NETWORK, on that one; or an address in words, "10.7.0.3". 0 if there is none.
 */
uint32_t net_resolve(const char *name);

/* Writes an address in words to `text`, and returns it. */
char *net_address_text(uint32_t address, char text[16]);

/* Answers ARP and echo requests until the limit. Returns NET_TIMEOUT, or why it can't (NET_NO_ADDRESS, NET_CORRUPT). */
int net_serve(struct net_port *port, uint64_t limit_ns);

/* ---- UDP --------------------------------------------------------------------------------------------------------------- */

struct udp_socket;

/* Where a datagram came from. */
struct udp_peer {
    uint32_t address;
    uint16_t port;
};

/* A socket at `local_port` (0: any that is free) of this guest's address. NULL if there can't be: net_why. */
struct udp_socket *udp_open(struct net_port *port, uint16_t local_port);
struct udp_socket *udp_must_open(struct net_port *port, uint16_t local_port);
void udp_close(struct udp_socket *socket);
uint16_t udp_port(const struct udp_socket *socket);

/* Bytes of the longest datagram: what fits the MTU. */
uint32_t udp_max_size(const struct udp_socket *socket);

/*
 * Sends a datagram. Waits while the ring is full, and, for an address that was not heard of lately, until it answers:
 * NET_UNREACHABLE if it does not within about three seconds, or the limit. To a multicast or broadcast address, this network's
 * stations.
 */
int udp_send_to(struct udp_socket *socket, uint32_t address, uint16_t to_port, const void *data, size_t size,
                uint64_t limit_ns);

/*
 * Receives a datagram: its size, and in *from (may be NULL) who sent it. One that is over `room` is lost: NET_TOO_LONG. Those
 * for other sockets of the port are kept for them meanwhile, up to 64 KiB or a few of the longest each.
 */
int64_t udp_receive_from(struct udp_socket *socket, void *data, size_t room, struct udp_peer *from, uint64_t limit_ns);

/* Waits until one of `count` sockets (at most 64, of any ports) has a datagram: its index, or NET_TIMEOUT. */
int udp_select(struct udp_socket *const *sockets, size_t count, uint64_t limit_ns);

#endif
