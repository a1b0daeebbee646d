/* vhost_user.c: see vhost_user.h. */
#define _GNU_SOURCE
#include "vhost_user.h"

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#ifndef VIRTIO_NET_F_GUEST_USO4 /* Linux 6.2 */
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#endif

/* Bits of the protocol (vhost-user, "Protocol features", "Header"). */
enum { F_PROTOCOL_FEATURES = 30 };
enum { P_MQ = 0, P_REPLY_ACK = 3, P_NET_MTU = 4, P_RESET_DEVICE = 13, P_CONFIGURE_MEM_SLOTS = 15, P_NONE = 64 };
enum { VERSION = 1, VERSION_MASK = 3, REPLY = 4, NEED_REPLY = 8 };
enum { INDEX_MASK = 0xff, NO_DESCRIPTOR = 0x100, MTU_LEAST = 68 };

#define BIT(number) (1ull << (number))

/*
 * What guests may leave to each other or to the switch, and how queues may be. No ECN and no UFO: a frame with them
 * needs a receiver that takes them, which few do.
 */
static const uint64_t FEATURES =
    BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ANY_LAYOUT) | BIT(VIRTIO_F_IN_ORDER) | BIT(VIRTIO_RING_F_INDIRECT_DESC) |
    BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(F_PROTOCOL_FEATURES) | BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_MQ) |
    BIT(VIRTIO_NET_F_MTU) | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) |
    BIT(VIRTIO_NET_F_HOST_TSO6) | BIT(VIRTIO_NET_F_HOST_USO) | BIT(VIRTIO_NET_F_GUEST_CSUM) |
    BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) | BIT(VIRTIO_NET_F_GUEST_USO4) |
    BIT(VIRTIO_NET_F_GUEST_USO6);

static const uint64_t OFFLOADS = BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) |
                                 BIT(VIRTIO_NET_F_HOST_USO) | BIT(VIRTIO_NET_F_GUEST_CSUM) |
                                 BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) |
                                 BIT(VIRTIO_NET_F_GUEST_USO4) | BIT(VIRTIO_NET_F_GUEST_USO6);

static const uint64_t PROTOCOL =
    BIT(P_MQ) | BIT(P_REPLY_ACK) | BIT(P_NET_MTU) | BIT(P_RESET_DEVICE) | BIT(P_CONFIGURE_MEM_SLOTS);

/* What came of a message. */
enum outcome { DONE, ANSWERED, REFUSED, BAD };

/* A message's descriptors; what is kept is set to -1. */
struct fds {
    int fd[VHOST_TABLE];
    uint32_t count;
};

static enum outcome bad(struct vhost_user *user, const char *why) {
    user->field = why;
    return BAD;
}

static enum outcome refused(struct vhost_user *user, const char *why) {
    user->field = why;
    return REFUSED;
}

static enum outcome answer(struct vhost_message *message, uint64_t number) {
    message->number = number;
    message->size = sizeof message->number;
    return ANSWERED;
}

static int enter(struct vhost_user *user) {
    return user->owner.enter(user->owner.context);
}

/* All queues are found again before the forwarding thread may go on. */
static enum outcome leave(struct vhost_user *user) {
    enum outcome outcome = DONE;
    for (uint32_t i = 0; i < VHOST_RINGS; i++)
        if (vring_update(&user->rings[i], &user->memory, user->features))
            outcome = bad(user, user->rings[i].field);
    user->owner.leave(user->owner.context);
    return outcome;
}

static const char *const ending = "the port is being closed";

/* --- kicks --- */

static void forget_kick(struct vhost_user *user, struct vring_queue *ring) {
    /* The front end has the eventfd too: closing ours alone would leave it in the set. */
    if (ring->setup.kick >= 0)
        epoll_ctl(user->wake, EPOLL_CTL_DEL, ring->setup.kick, NULL);
}

static void reset_ring(struct vhost_user *user, struct vring_queue *ring) {
    forget_kick(user, ring);
    vring_reset(ring);
}

/* --- features --- */

static enum outcome get_features(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    return answer(message, user->offered);
}

static enum outcome set_features(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    if (message->number & ~user->offered)
        return bad(user, "features that were not offered");
    if (enter(user))
        return bad(user, ending);
    user->features = message->number;
    return leave(user);
}

static enum outcome get_protocol(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)user, (void)fds;
    return answer(message, PROTOCOL);
}

static enum outcome set_protocol(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    if (message->number & ~PROTOCOL)
        return bad(user, "protocol features that were not offered");
    user->protocol = message->number;
    return DONE;
}

static enum outcome get_queue_num(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)user, (void)fds;
    return answer(message, VHOST_PAIRS);
}

static enum outcome set_mtu(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    if (message->number < MTU_LEAST || message->number > user->mtu)
        return refused(user, "MTU that the network hasn't");
    return DONE;
}

/* --- sessions --- */

static enum outcome set_owner(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)user, (void)message, (void)fds;
    return DONE;
}

static enum outcome reset_owner(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)message, (void)fds;
    if (enter(user))
        return bad(user, ending);
    for (uint32_t i = 0; i < VHOST_RINGS; i++)
        user->rings[i].setup.enabled = 0;
    return leave(user);
}

static enum outcome reset_device(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)message, (void)fds;
    if (enter(user))
        return bad(user, ending);
    for (uint32_t i = 0; i < VHOST_RINGS; i++)
        reset_ring(user, &user->rings[i]);
    user->features = 0;
    return leave(user);
}

/* Nothing that is written is logged: VHOST_F_LOG_ALL is not offered. */
static enum outcome refuse_log(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)message, (void)fds;
    return refused(user, "a log of writes, which was not offered");
}

/* --- memory --- */

static enum outcome set_mem_table(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    if (message->table.count > VHOST_TABLE ||
        message->size != 8 + message->table.count * sizeof(struct vhost_region_message))
        return bad(user, "number of regions");
    if (fds->count != message->table.count)
        return bad(user, "number of descriptors");
    struct vhost_memory fresh = {.count = 0};
    for (uint32_t i = 0; i < message->table.count; i++) {
        struct vhost_region_message asked = message->table.regions[i];
        struct vhost_region region;
        const char *why = vhost_region_map(&region, &asked, fds->fd[i], &user->lost);
        if (!why && (why = vhost_memory_add(&fresh, &region)))
            vhost_region_unmap(&region);
        if (why) {
            vhost_memory_clear(&fresh);
            return bad(user, why);
        }
    }
    if (enter(user)) {
        vhost_memory_clear(&fresh);
        return bad(user, ending);
    }
    struct vhost_memory old = user->memory;
    user->memory = fresh;
    enum outcome outcome = leave(user);
    vhost_memory_clear(&old);
    return outcome;
}

static enum outcome max_mem_slots(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)user, (void)fds;
    return answer(message, VHOST_REGIONS);
}

static enum outcome add_mem_reg(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    struct vhost_region_message asked = message->region.region;
    struct vhost_region region;
    const char *why = vhost_region_map(&region, &asked, fds->fd[0], &user->lost);
    if (why)
        return bad(user, why);
    if (enter(user)) {
        vhost_region_unmap(&region);
        return bad(user, ending);
    }
    why = vhost_memory_add(&user->memory, &region);
    enum outcome outcome = leave(user);
    if (!why)
        return outcome;
    vhost_region_unmap(&region);
    return bad(user, why);
}

static enum outcome rem_mem_reg(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds; /* Older front ends send one, which is not needed. */
    struct vhost_region_message asked = message->region.region;
    struct vhost_region removed;
    if (enter(user))
        return bad(user, ending);
    int found = vhost_memory_remove(&user->memory, &asked, &removed);
    enum outcome outcome = leave(user);
    if (!found)
        return bad(user, "a region that is not there");
    vhost_region_unmap(&removed);
    return outcome;
}

/* --- queues --- */

static struct vring_queue *ring_of(struct vhost_user *user, uint64_t index) {
    return index < VHOST_RINGS ? &user->rings[index] : NULL;
}

static const char *const no_queue = "number of a queue";

static enum outcome set_vring_num(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    struct vring_queue *ring = ring_of(user, message->state.index);
    uint32_t size = message->state.number;
    if (!ring)
        return bad(user, no_queue);
    if (!size || size > VRING_MAX || size & (size - 1))
        return bad(user, "size of a queue");
    if (vring_live(ring))
        return bad(user, "size of a queue that runs");
    ring->setup.size = (uint16_t)size;
    return DONE;
}

static enum outcome set_vring_base(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    struct vring_queue *ring = ring_of(user, message->state.index);
    if (!ring)
        return bad(user, no_queue);
    if (message->state.number > UINT16_MAX)
        return bad(user, "index of a queue");
    ring->setup.base = (uint16_t)message->state.number;
    return DONE;
}

static enum outcome get_vring_base(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    struct vring_queue *ring = ring_of(user, message->state.index);
    if (!ring)
        return bad(user, no_queue);
    if (enter(user))
        return bad(user, ending);
    forget_kick(user, ring);
    message->state.number = vring_stop(ring);
    message->size = sizeof message->state;
    return leave(user) == BAD ? BAD : ANSWERED;
}

static enum outcome set_vring_addr(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    struct vring_queue *ring = ring_of(user, message->address.index);
    if (!ring)
        return bad(user, no_queue);
    if (message->address.flags)
        return bad(user, "a log of a queue, which was not offered");
    if (enter(user))
        return bad(user, ending);
    ring->setup.desc = message->address.desc;
    ring->setup.avail = message->address.avail;
    ring->setup.used = message->address.used;
    ring->setup.addressed = 1;
    return leave(user);
}

static enum outcome set_vring_enable(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    (void)fds;
    struct vring_queue *ring = ring_of(user, message->state.index);
    if (!ring)
        return bad(user, no_queue);
    if (message->state.number > 1)
        return bad(user, "neither on nor off");
    if (enter(user))
        return bad(user, ending);
    ring->setup.enabled = (uint8_t)message->state.number;
    return leave(user);
}

/* We write to it, or wait for it, in the forwarding thread: of all that a descriptor can be, an eventfd never blocks
 * there. */
static int is_eventfd(int fd) {
    char path[32], target[32] = {0};
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return readlink(path, target, sizeof target - 1) > 0 && !strcmp(target, "anon_inode:[eventfd]");
}

/* The queue and the descriptor (-1: none is meant) of SET_VRING_KICK, CALL and ERR. */
static const char *read_event(struct vhost_user *user, const struct vhost_message *message, struct fds *fds,
                              struct vring_queue **ring, int *fd) {
    *ring = ring_of(user, message->number & INDEX_MASK);
    int none = (message->number & NO_DESCRIPTOR) != 0;
    if (!*ring || message->number & ~(uint64_t)(INDEX_MASK | NO_DESCRIPTOR))
        return no_queue;
    if (fds->count != (none ? 0u : 1u))
        return "number of descriptors";
    if (!none && (!is_eventfd(fds->fd[0]) || fcntl(fds->fd[0], F_SETFL, O_NONBLOCK)))
        return "a descriptor that is no eventfd";
    *fd = none ? -1 : fds->fd[0];
    return NULL;
}

/* Puts it in place of the old one, which is closed. */
static void keep(struct fds *fds, int *place, int fd) {
    if (*place >= 0)
        close(*place);
    *place = fd;
    fds->fd[0] = -1;
}

static enum outcome set_vring_kick(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    struct vring_queue *ring;
    int fd;
    const char *why = read_event(user, message, fds, &ring, &fd);
    if (why)
        return bad(user, why);
    /* Never read: with EPOLLET each kick is an event. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (fd >= 0 && epoll_ctl(user->wake, EPOLL_CTL_ADD, fd, &event))
        return bad(user, "a descriptor that can't be waited for");
    if (enter(user)) {
        if (fd >= 0)
            epoll_ctl(user->wake, EPOLL_CTL_DEL, fd, NULL);
        return bad(user, ending);
    }
    forget_kick(user, ring);
    keep(fds, &ring->setup.kick, fd);
    ring->setup.kicked = 1;
    return leave(user);
}

static enum outcome set_vring_call(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    struct vring_queue *ring;
    int fd;
    const char *why = read_event(user, message, fds, &ring, &fd);
    if (why)
        return bad(user, why);
    if (enter(user))
        return bad(user, ending);
    keep(fds, &ring->setup.call, fd);
    return leave(user);
}

static enum outcome set_vring_err(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    struct vring_queue *ring;
    int fd;
    const char *why = read_event(user, message, fds, &ring, &fd);
    if (why)
        return bad(user, why);
    if (enter(user))
        return bad(user, ending);
    keep(fds, &ring->setup.err, fd);
    return leave(user);
}

/* --- all of them --- */

enum { SIZE_TABLE = 0xffff, SIZE_LOG = 0xfffe };

static const struct request {
    const char *name;
    enum outcome (*run)(struct vhost_user *user, struct vhost_message *message, struct fds *fds);
    uint16_t size; /* of the payload */
    uint8_t least_fds, most_fds;
    uint8_t needs; /* protocol feature without which it may not come */
} requests[] = {
    [1] = {"GET_FEATURES", get_features, 0, 0, 0, P_NONE},
    [2] = {"SET_FEATURES", set_features, 8, 0, 0, P_NONE},
    [3] = {"SET_OWNER", set_owner, 0, 0, 0, P_NONE},
    [4] = {"RESET_OWNER", reset_owner, 0, 0, 0, P_NONE},
    [5] = {"SET_MEM_TABLE", set_mem_table, SIZE_TABLE, 0, VHOST_TABLE, P_NONE},
    [6] = {"SET_LOG_BASE", refuse_log, SIZE_LOG, 0, 1, P_NONE},
    [7] = {"SET_LOG_FD", refuse_log, SIZE_LOG, 0, 1, P_NONE},
    [8] = {"SET_VRING_NUM", set_vring_num, 8, 0, 0, P_NONE},
    [9] = {"SET_VRING_ADDR", set_vring_addr, 40, 0, 0, P_NONE},
    [10] = {"SET_VRING_BASE", set_vring_base, 8, 0, 0, P_NONE},
    [11] = {"GET_VRING_BASE", get_vring_base, 8, 0, 0, P_NONE},
    [12] = {"SET_VRING_KICK", set_vring_kick, 8, 0, 1, P_NONE},
    [13] = {"SET_VRING_CALL", set_vring_call, 8, 0, 1, P_NONE},
    [14] = {"SET_VRING_ERR", set_vring_err, 8, 0, 1, P_NONE},
    [15] = {"GET_PROTOCOL_FEATURES", get_protocol, 0, 0, 0, P_NONE},
    [16] = {"SET_PROTOCOL_FEATURES", set_protocol, 8, 0, 0, P_NONE},
    [17] = {"GET_QUEUE_NUM", get_queue_num, 0, 0, 0, P_NONE},
    [18] = {"SET_VRING_ENABLE", set_vring_enable, 8, 0, 0, P_NONE},
    [20] = {"NET_SET_MTU", set_mtu, 8, 0, 0, P_NET_MTU},
    [34] = {"RESET_DEVICE", reset_device, 0, 0, 0, P_RESET_DEVICE},
    [36] = {"GET_MAX_MEM_SLOTS", max_mem_slots, 0, 0, 0, P_CONFIGURE_MEM_SLOTS},
    [37] = {"ADD_MEM_REG", add_mem_reg, 40, 1, 1, P_CONFIGURE_MEM_SLOTS},
    [38] = {"REM_MEM_REG", rem_mem_reg, 40, 0, 1, P_CONFIGURE_MEM_SLOTS},
};

static const struct request *find(uint32_t request) {
    if (request >= sizeof requests / sizeof *requests || !requests[request].run)
        return NULL;
    return &requests[request];
}

const char *vhost_user_name(uint32_t request) {
    const struct request *known = find(request);
    return known ? known->name : "unknown request";
}

int vhost_user_size_ok(uint32_t request, uint32_t size) {
    const struct request *known = find(request);
    if (!known)
        return 0;
    switch (known->size) {
    case SIZE_TABLE:
        return size >= 8 && size <= VHOST_PAYLOAD;
    case SIZE_LOG:
        return size <= 16;
    default:
        return size == known->size;
    }
}

static enum outcome run(struct vhost_user *user, struct vhost_message *message, struct fds *fds) {
    const struct request *known = find(message->request);
    if (!known)
        return bad(user, "a request that is not known");
    if ((message->flags & VERSION_MASK) != VERSION || message->flags & REPLY)
        return bad(user, "flags of a message");
    if (!vhost_user_size_ok(message->request, message->size))
        return bad(user, "size of a message");
    if (fds->count < known->least_fds || fds->count > known->most_fds)
        return bad(user, "number of descriptors");
    if (known->needs != P_NONE && !(user->protocol >> known->needs & 1))
        return bad(user, "a request whose protocol feature was not negotiated");
    return known->run(user, message, fds);
}

int vhost_user_message(struct vhost_user *user, struct vhost_message *message, const int *fds, uint32_t fd_count) {
    struct fds own = {.count = fd_count};
    memcpy(own.fd, fds, fd_count * sizeof *fds);
    int acknowledge = message->flags & NEED_REPLY && user->protocol >> P_REPLY_ACK & 1;
    user->field = NULL;
    enum outcome outcome = run(user, message, &own);
    for (uint32_t i = 0; i < own.count; i++)
        if (own.fd[i] >= 0)
            close(own.fd[i]);
    if (outcome == BAD || (outcome == REFUSED && !acknowledge))
        return -1;
    if (outcome != ANSWERED) {
        if (!acknowledge)
            return 0;
        answer(message, outcome == REFUSED);
    }
    message->flags = VERSION | REPLY;
    return 1;
}

int vhost_user_active(const struct vhost_user *user, uint32_t ring) {
    const struct vring_queue *known = &user->rings[ring];
    return vring_live(known) && (known->setup.enabled || !vhost_user_has(user, F_PROTOCOL_FEATURES));
}

void vhost_user_open(struct vhost_user *user, int wake, uint32_t mtu, int offloads, const struct vhost_owner *owner) {
    user->memory = (struct vhost_memory){.count = 0};
    user->lost = 0;
    user->wake = wake;
    user->mtu = mtu;
    user->offered = offloads ? FEATURES : FEATURES & ~OFFLOADS;
    user->features = user->protocol = 0;
    user->owner = *owner;
    user->field = NULL;
    for (uint32_t i = 0; i < VHOST_RINGS; i++) {
        user->rings[i].desc = NULL;
        user->rings[i].held = 0;
        user->rings[i].setup = (struct vring_setup){.kick = -1, .call = -1, .err = -1};
    }
}

void vhost_user_close(struct vhost_user *user) {
    int alone = enter(user);
    for (uint32_t i = 0; i < VHOST_RINGS; i++)
        reset_ring(user, &user->rings[i]);
    struct vhost_memory old = user->memory;
    user->memory = (struct vhost_memory){.count = 0};
    user->features = 0;
    if (!alone)
        user->owner.leave(user->owner.context);
    vhost_memory_clear(&old);
}
