/* tap_port.c: see tap_port.h. */
#include "tap_port.h"

#include "kernel_frame.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef TUN_F_USO4 /* Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

enum {
    ARENA = 1 << 20,      /* bytes: 64 frames of 9 KiB, or 15 of 64 KiB, read at one look */
    ALIGNMENT = 64,
    LOOK_NS = 5000,       /* after a look that found nothing: a read of nothing costs 0.3 us */
};

struct tap_port {
    struct port port;
    int fd;
    int statistics;       /* a netlink socket of the interface's namespace */
    int index;            /* of the interface */
    uint64_t lost;        /* frames, by the kernel's count, that were counted here */
    int behind;           /* a look left frames behind: the kernel may have lost some */
    uint64_t empty_ns;    /* when the last look found nothing, 0 if it found something */
    uint8_t *arena;       /* the frames held out */
};

/*
 * Reads one frame to `to`, where FRAME_MAX + 1 bytes are free: its size, 0 if there is none, -errno. The kernel cuts what is longer,
 * so a size over FRAME_MAX is an oversize frame's.
 */
static int read_frame(struct tap_port *tap, struct virtio_net_hdr_v1 *offload, uint8_t *to) {
    struct iovec pieces[] = {{offload, OFFLOAD_SIZE}, {to, FRAME_MAX + 1}};
    ssize_t got;
    do
        got = readv(tap->fd, pieces, 2);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? 0 : -errno;
    return got < OFFLOAD_SIZE ? -EBADFD : (int)(got - OFFLOAD_SIZE);
}

/* The frames that the kernel has lost because its queue was full (RTM_GETSTATS); -1 where it does not say. */
static int64_t lost_frames(const struct tap_port *tap) {
    struct {
        struct nlmsghdr header;
        struct if_stats_msg body;
    } request = {
        .header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETSTATS, .nlmsg_flags = NLM_F_REQUEST},
        .body = {.ifindex = (uint32_t)tap->index, .filter_mask = IFLA_STATS_FILTER_BIT(IFLA_STATS_LINK_64)},
    };
    struct {
        struct nlmsghdr header;
        struct if_stats_msg body;
        struct rtattr attribute;
        struct rtnl_link_stats64 link;
        uint8_t later[64]; /* of a kernel that counts more */
    } __attribute__((packed)) answer;
    const size_t least = offsetof(typeof(answer), link) + offsetof(struct rtnl_link_stats64, tx_dropped) + 8;
    if (send(tap->statistics, &request, sizeof request, MSG_DONTWAIT) < 0)
        return -1;
    if (recv(tap->statistics, &answer, sizeof answer, MSG_DONTWAIT) < (ssize_t)least || answer.header.nlmsg_type != RTM_NEWSTATS)
        return -1;
    return (int64_t)answer.link.tx_dropped;
}

/* The switch has caught up: was it in time? */
static void count_missed(struct tap_port *tap) {
    int64_t lost = lost_frames(tap);
    tap->behind = 0;
    if (lost < 0)
        return;
    tap->port.counters.missed += (uint64_t)lost - tap->lost;
    tap->lost = (uint64_t)lost;
}

static int tap_peek(struct port *port, struct frame *frames, int room) {
    struct tap_port *tap = (struct tap_port *)port;
    if (tap->empty_ns && kernel_now_ns() - tap->empty_ns < LOOK_NS)
        return 0;
    tap->empty_ns = 0;
    int count = 0;
    uint32_t used = 0;
    for (int reads = 0; reads < room && used + FRAME_MAX + 1 <= ARENA; reads++) {
        struct frame *frame = &frames[count];
        uint8_t *at = tap->arena + used;
        int size = read_frame(tap, &frame->offload, at);
        if (size < 0) {
            port->field = "interface";
            return -PORT_E_DEVICE; /* EBADFD: the interface was removed */
        }
        if (!size) {
            if (tap->behind)
                count_missed(tap);
            tap->empty_ns = count ? 0 : kernel_now_ns();
            return count;
        }
        if (kernel_frame_accept(port, frame, at, (uint32_t)size)) {
            count++;
            used += ((uint32_t)size + ALIGNMENT - 1) & ~(ALIGNMENT - 1u);
        }
    }
    tap->behind = 1;
    return count;
}

/* The arena is used again by the next look only. */
static int tap_release(struct port *port) {
    (void)port;
    return 0;
}

static int tap_send(struct port *port, const struct frame *frame) {
    struct tap_port *tap = (struct tap_port *)port;
    int error = kernel_frame_write(tap->fd, frame, OFFLOAD_SIZE);
    if (!error)
        return 0;
    enum drop drop = kernel_frame_refusal(-error);
    if (drop != DROP_NONE)
        return drop;
    port->field = "interface";
    return -PORT_E_DEVICE;
}

static int tap_flush(struct port *port) {
    (void)port;
    return 0;
}

/* Nothing need be asked for: each frame that comes wakes who waits for the descriptor. */
static void tap_arm(struct port *port) {
    (void)port;
}

static int tap_ready(struct port *port) {
    struct tap_port *tap = (struct tap_port *)port;
    struct pollfd fd = {.fd = tap->fd, .events = POLLIN};
    tap->empty_ns = 0;
    return poll(&fd, 1, 0) != 0; /* an error too is for peek to see */
}

static void tap_close(struct port *port) {
    struct tap_port *tap = (struct tap_port *)port;
    if (tap->fd >= 0)
        close(tap->fd); /* the interface goes with it */
    if (tap->statistics >= 0)
        close(tap->statistics);
    if (tap->arena != MAP_FAILED)
        munmap(tap->arena, ARENA);
    free(tap);
}

static const struct port_ops tap_ops = {
    .kind = "tap",
    .peek = tap_peek,
    .release = tap_release,
    .send = tap_send,
    .flush = tap_flush,
    .arm = tap_arm,
    .ready = tap_ready,
    .close = tap_close,
};

/* Makes the interface, and offers the kernel to leave checksums and segmentation to us. Returns what the kernel takes of us, or -errno. */
static int make_interface(int fd, const char *interface) {
    struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL)};
    int header = OFFLOAD_SIZE, flags = PORT_TAKES_CSUM | PORT_TAKES_TSO4 | PORT_TAKES_TSO6;
    unsigned long offers = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    memcpy(request.ifr_name, interface, strlen(interface));
    if (ioctl(fd, TUNSETIFF, &request) || ioctl(fd, TUNSETVNETHDRSZ, &header))
        return -errno;
    /* A kernel that offers no UDP segments takes none either. */
    if (!ioctl(fd, TUNSETOFFLOAD, offers | TUN_F_USO4 | TUN_F_USO6))
        return flags | PORT_TAKES_USO;
    return ioctl(fd, TUNSETOFFLOAD, offers) ? -errno : flags;
}

struct port *tap_port_new(const char *name, const char *interface) {
    if (!*interface || strlen(interface) >= IFNAMSIZ || strchr(interface, '%') || strlen(name) >= PORT_NAME) {
        errno = EINVAL; /* the kernel would put a number for a percent sign */
        return NULL;
    }
    struct tap_port *tap = calloc(1, sizeof *tap);
    if (!tap)
        return NULL;
    tap->port.ops = &tap_ops;
    memcpy(tap->port.name, name, strlen(name));
    tap->arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    tap->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    tap->statistics = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int failed = tap->arena == MAP_FAILED || tap->fd < 0 || tap->statistics < 0;
    int flags = failed ? -errno : make_interface(tap->fd, interface);
    if (flags < 0) {
        tap_close(&tap->port);
        errno = -flags;
        return NULL;
    }
    tap->index = (int)if_nametoindex(interface);
    tap->port.flags = (uint32_t)flags;
    tap->port.wake = tap->fd;
    tap->port.max_frame = FRAME_MAX;
    tap->port.up = 1;
    return &tap->port;
}
