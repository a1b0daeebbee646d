/* packet_port.c: see packet_port.h. */
#include "packet_port.h"

#include "kernel_frame.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

enum {
    RING = 4 << 20,          /* bytes of the kernel's, not to be swapped: 2112 slots for an MTU of 1500 */
    BLOCK = 64 << 10,
    SLOT_MAX = 16 << 10,
    SLOT_OVERHEAD = 192,     /* what TPACKET_V2 and the offload header put before a frame, and some */
    LINE = 64,
    STAGE = 1 << 20,         /* bytes for frames that are longer than a slot; 15 of 64 KiB */
    BUFFER = 8 << 20,        /* bytes of longer frames that may wait in the socket; of sent ones that the interface has not sent */
    HEADER = sizeof(struct virtio_net_hdr),
    VLAN_TAG = 4,
    LOOK_EVERY = 4096,       /* fruitless looks, then is the interface still there? */
};

struct packet_port {
    struct port port;
    int fd, index;           /* of the interface */
    uint8_t *ring;
    uint32_t slot_size, slots_per_block, slots;
    uint32_t next, held;     /* the slots held out: `held` from `next` on */
    uint32_t fruitless;
    uint8_t *stage;
};

static uint8_t *slot_at(const struct packet_port *packet, uint32_t index) {
    index %= packet->slots;
    return packet->ring + (size_t)(index / packet->slots_per_block) * BLOCK +
           (size_t)(index % packet->slots_per_block) * packet->slot_size;
}

static struct tpacket2_hdr *slot_header(const struct packet_port *packet, uint32_t index) {
    return (struct tpacket2_hdr *)slot_at(packet, index);
}

static uint32_t slot_status(const struct packet_port *packet, uint32_t index) {
    /* Acquire: the frame is read after it. */
    return __atomic_load_n(&slot_header(packet, index)->tp_status, __ATOMIC_ACQUIRE);
}

/* Reading them sets the kernel's to 0. */
static void count_missed(struct packet_port *packet) {
    struct tpacket_stats statistics;
    socklen_t size = sizeof statistics;
    if (!getsockopt(packet->fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &size))
        packet->port.counters.missed += statistics.tp_drops;
}

/* The interface was removed, or moved to another namespace: -PORT_E_DEVICE, with errors cleared that only say that it is down; else 0. */
static int check_interface(struct packet_port *packet) {
    struct ifreq request = {.ifr_ifindex = packet->index};
    int error;
    socklen_t size = sizeof error;
    getsockopt(packet->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (!ioctl(packet->fd, SIOCGIFNAME, &request))
        return 0;
    packet->port.field = "interface";
    return -PORT_E_DEVICE;
}

/* A frame longer than its slot waits in the socket, whole. Returns its size (over FRAME_MAX it was cut), or 0 where there is none. */
static uint32_t receive_long(struct packet_port *packet, struct virtio_net_hdr_v1 *offload, uint8_t *to) {
    struct iovec pieces[] = {{offload, HEADER}, {to, FRAME_MAX}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    ssize_t got;
    do
        got = recvmsg(packet->fd, &message, MSG_DONTWAIT | MSG_TRUNC);
    while (got < 0 && errno == EINTR);
    return got <= HEADER ? 0 : (uint32_t)(got - HEADER);
}

/* Puts the VLAN tag back that the kernel took out, into the room before the frame; returns where the frame now begins. */
static uint8_t *restore_tag(uint8_t *bytes, const struct tpacket2_hdr *header, struct virtio_net_hdr_v1 *offload) {
    uint16_t type = header->tp_status & TP_STATUS_VLAN_TPID_VALID ? header->tp_vlan_tpid : ETH_P_8021Q;
    uint16_t tag[] = {htons(type), htons(header->tp_vlan_tci)};
    memmove(bytes - VLAN_TAG, bytes, 2 * ETH_ALEN);
    memcpy(bytes - VLAN_TAG + 2 * ETH_ALEN, tag, VLAN_TAG);
    if (offload->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        offload->csum_start += VLAN_TAG;
    if (offload->hdr_len)
        offload->hdr_len += VLAN_TAG;
    return bytes - VLAN_TAG;
}

/* One frame of a slot: 1 if `frame` holds it, 0 if it was counted and passed over. `used`: bytes of the stage. */
static int take_slot(struct packet_port *packet, struct tpacket2_hdr *header, struct frame *frame, uint32_t *used) {
    uint32_t size = header->tp_len, offset = header->tp_mac;
    uint8_t *bytes = (uint8_t *)header + offset;
    memset(&frame->offload, 0, sizeof frame->offload);
    if (header->tp_status & TP_STATUS_COPY) {
        bytes = packet->stage + *used + LINE;
        size = receive_long(packet, &frame->offload, bytes);
        *used += LINE + (((size < FRAME_MAX ? size : FRAME_MAX) + LINE - 1) & ~(LINE - 1u));
    } else if (header->tp_snaplen < size || offset < HEADER + VLAN_TAG || offset + size > packet->slot_size) {
        size = 0;
    } else {
        memcpy(&frame->offload, bytes - HEADER, HEADER);
    }
    if (!size) { /* no room was left in the socket for a frame longer than its slot */
        packet->port.counters.missed++;
        return 0;
    }
    if (header->tp_status & TP_STATUS_VLAN_VALID && size >= 2 * ETH_ALEN && size <= FRAME_MAX - VLAN_TAG) {
        bytes = restore_tag(bytes, header, &frame->offload);
        size += VLAN_TAG;
    }
    return kernel_frame_accept(&packet->port, frame, bytes, size);
}

static int packet_release(struct port *port) {
    struct packet_port *packet = (struct packet_port *)port;
    /* Release: the frames have been read before the kernel writes others there. */
    for (; packet->held; packet->held--, packet->next = (packet->next + 1) % packet->slots)
        __atomic_store_n(&slot_header(packet, packet->next)->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    return 0;
}

static int packet_peek(struct port *port, struct frame *frames, int room) {
    struct packet_port *packet = (struct packet_port *)port;
    int count = 0, losing = 0;
    uint32_t used = 0;
    while (count < room && packet->held < packet->slots && used + LINE + FRAME_MAX <= STAGE) {
        uint32_t index = packet->next + packet->held, status = slot_status(packet, index);
        if (!(status & TP_STATUS_USER))
            break;
        losing |= status & TP_STATUS_LOSING;
        count += take_slot(packet, slot_header(packet, index), &frames[count], &used);
        packet->held++;
    }
    if (losing)
        count_missed(packet);
    if (packet->held) {
        packet->fruitless = 0;
    } else if (++packet->fruitless >= LOOK_EVERY) {
        packet->fruitless = 0;
        return check_interface(packet);
    }
    return count ? count : packet_release(port); /* nothing is held out, nobody would release what was passed over */
}

static int packet_send(struct port *port, const struct frame *frame) {
    struct packet_port *packet = (struct packet_port *)port;
    int error = kernel_frame_write(packet->fd, frame, HEADER);
    if (!error)
        return 0;
    enum drop drop = kernel_frame_refusal(-error);
    if (drop != DROP_NONE)
        return drop;
    error = check_interface(packet);
    return error ? error : DROP_DOWN;
}

static int packet_flush(struct port *port) {
    (void)port;
    return 0;
}

/* Nothing need be asked for: each frame that comes wakes who waits for the descriptor. */
static void packet_arm(struct port *port) {
    count_missed((struct packet_port *)port);
}

static int packet_ready(struct port *port) {
    struct packet_port *packet = (struct packet_port *)port;
    struct pollfd fd = {.fd = packet->fd, .events = POLLIN};
    if (slot_status(packet, packet->next) & TP_STATUS_USER)
        return 1;
    if (poll(&fd, 1, 0) <= 0)
        return 0;
    packet->fruitless = LOOK_EVERY; /* an error: the next look asks for the interface */
    return 1;
}

static void packet_close(struct port *port) {
    struct packet_port *packet = (struct packet_port *)port;
    if (packet->ring != MAP_FAILED)
        munmap(packet->ring, RING);
    if (packet->stage != MAP_FAILED)
        munmap(packet->stage, STAGE);
    if (packet->fd >= 0)
        close(packet->fd);
    free(packet);
}

static const struct port_ops packet_ops = {
    .kind = "packet",
    .peek = packet_peek,
    .release = packet_release,
    .send = packet_send,
    .flush = packet_flush,
    .arm = packet_arm,
    .ready = packet_ready,
    .close = packet_close,
};

static int set(int fd, int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof value) ? -errno : 0;
}

/* Slots of an odd number of lines, so that the frames' first lines spread over all sets of a cache. */
static uint32_t slot_size_for(int mtu) {
    uint32_t size = (uint32_t)(mtu < 0 ? 0 : mtu) + FRAME_HEADER + VLAN_TAG + SLOT_OVERHEAD;
    if (size > SLOT_MAX)
        size = SLOT_MAX;
    return ((size + LINE - 1) / LINE | 1) * LINE;
}

/* The ring, before the socket is bound and anything comes: 0 or -errno. */
static int make_ring(struct packet_port *packet, int mtu) {
    int error = set(packet->fd, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
    if (!error)
        error = set(packet->fd, SOL_PACKET, PACKET_VNET_HDR, 1); /* refused once there is a ring */
    if (!error)
        error = set(packet->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    if (!error)
        error = set(packet->fd, SOL_PACKET, PACKET_COPY_THRESH, 1); /* a frame longer than a slot is kept in the socket */
    if (!error)
        error = set(packet->fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);
    if (!error)
        error = set(packet->fd, SOL_SOCKET, SO_SNDBUFFORCE, BUFFER);
    if (error)
        return error;
    packet->slot_size = slot_size_for(mtu);
    packet->slots_per_block = BLOCK / packet->slot_size;
    packet->slots = packet->slots_per_block * (RING / BLOCK);
    struct tpacket_req request = {
        .tp_block_size = BLOCK,
        .tp_block_nr = RING / BLOCK,
        .tp_frame_size = packet->slot_size,
        .tp_frame_nr = packet->slots,
    };
    if (setsockopt(packet->fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request))
        return -errno;
    packet->ring = mmap(NULL, RING, PROT_READ | PROT_WRITE, MAP_SHARED, packet->fd, 0);
    packet->stage = mmap(NULL, STAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return packet->ring == MAP_FAILED || packet->stage == MAP_FAILED ? -errno : 0;
}

static int open_interface(struct packet_port *packet, const char *interface) {
    struct ifreq request = {0};
    memcpy(request.ifr_name, interface, strlen(interface));
    packet->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (packet->fd < 0 || ioctl(packet->fd, SIOCGIFINDEX, &request))
        return -errno;
    packet->index = request.ifr_ifindex;
    if (ioctl(packet->fd, SIOCGIFMTU, &request))
        return -errno;
    int error = make_ring(packet, request.ifr_mtu);
    if (error)
        return error;
    struct packet_mreq everything = {.mr_ifindex = packet->index, .mr_type = PACKET_MR_PROMISC};
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = packet->index};
    if (setsockopt(packet->fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &everything, sizeof everything) ||
        bind(packet->fd, (struct sockaddr *)&address, sizeof address))
        return -errno;
    return 0;
}

/* Does the kernel know segments of UDP in a virtio_net_hdr? From Linux 6.2 on; there is nothing else to ask. */
static int takes_udp_segments(void) {
    struct utsname name;
    int major = 0, minor = 0;
    return !uname(&name) && sscanf(name.release, "%d.%d", &major, &minor) == 2 && (major > 6 || (major == 6 && minor >= 2));
}

struct port *packet_port_new(const char *name, const char *interface) {
    if (!*interface || strlen(interface) >= IFNAMSIZ || strlen(name) >= PORT_NAME) {
        errno = EINVAL;
        return NULL;
    }
    struct packet_port *packet = calloc(1, sizeof *packet);
    if (!packet)
        return NULL;
    packet->port.ops = &packet_ops;
    memcpy(packet->port.name, name, strlen(name));
    packet->ring = packet->stage = MAP_FAILED;
    int error = open_interface(packet, interface);
    if (error) {
        packet_close(&packet->port);
        errno = -error;
        return NULL;
    }
    packet->port.flags = PORT_TAKES_CSUM | PORT_TAKES_TSO4 | PORT_TAKES_TSO6 | (takes_udp_segments() ? PORT_TAKES_USO : 0);
    packet->port.wake = packet->fd;
    packet->port.max_frame = FRAME_MAX;
    packet->port.up = 1;
    return &packet->port;
}
