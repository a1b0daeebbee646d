/* vhost_tell.c: see vhost_tell.h. */
#include "vhost_tell.h"

#include <linux/virtio_ring.h>
#include <stddef.h>

#include "transport.h"

/*
 * What a back end takes for the address of guest address 0 in this process. It knows rings by such addresses only to find them
 * in the memory table, so they need not be true, and where this process really has the memory is nobody's business.
 */
#define UVA (1ull << 46)

/* What is told of a queue, in this order; with the last one the back end may use it. */
enum { TELL_SIZE, TELL_BASE, TELL_ADDRESS, TELL_ERRORS, TELL_CALL, TELL_KICK };
_Static_assert(TELL_KICK + 1 == VHOST_TOLD, "");

/* Sends it; an answer is awaited if there is one by its nature, or the back end acknowledges. */
static void tell(struct vhost_front *front, struct vhost_request *request, uint32_t number, uint32_t size, const int *fds,
                 uint32_t fd_count, int answered) {
    request->header = (struct vhost_header){.request = number, .flags = VHOST_VERSION, .size = size};
    if (!answered && vhost_has_protocol(front, VHOST_P_REPLY_ACK)) {
        request->header.flags |= VHOST_NEED_REPLY;
        answered = 1;
    }
    front->unsent = -vhost_link_send(front->socket.fd, request, fds, fd_count);
    front->last = number;
    if (answered && !front->unsent) {
        front->awaited = number;
        front->answer = (struct vhost_answer){.got = 0};
    }
}

void vhost_ask(struct vhost_front *front, uint32_t number) {
    struct vhost_request request = {.number = 0};
    tell(front, &request, number, 0, NULL, 0, 1);
}

void vhost_tell_number(struct vhost_front *front, uint32_t number, uint64_t value) {
    struct vhost_request request = {.number = value};
    tell(front, &request, number, sizeof request.number, NULL, 0, 0);
}

void vhost_tell(struct vhost_front *front, uint32_t number) {
    struct vhost_request request = {.number = 0};
    tell(front, &request, number, 0, NULL, 0, 0);
}

void vhost_tell_state(struct vhost_front *front, uint32_t number, uint32_t index, uint32_t value) {
    struct vhost_request request = {.state = {index, value}};
    tell(front, &request, number, sizeof request.state, NULL, 0, number == VHOST_GET_VRING_BASE);
}

static void tell_event(struct vhost_front *front, uint32_t number, uint32_t index, int fd) {
    struct vhost_request request = {.number = index};
    tell(front, &request, number, sizeof request.number, &fd, 1, 0);
}

void vhost_tell_memory(struct vhost_front *front) {
    struct vhost_request request = {.table = {.count = front->share_count}};
    int fds[VHOST_SHARES];
    for (uint32_t i = 0; i < front->share_count; i++) {
        const struct vhost_share *share = &front->shares[i];
        request.table.ranges[i].gpa = share->gpa;
        request.table.ranges[i].size = share->size;
        request.table.ranges[i].uva = UVA + share->gpa;
        request.table.ranges[i].offset = share->offset;
        fds[i] = share->fd;
    }
    uint32_t size = 8 + front->share_count * (uint32_t)sizeof request.table.ranges[0];
    tell(front, &request, VHOST_SET_MEM_TABLE, size, fds, front->share_count, 0);
}

static void tell_address(struct vhost_front *front, uint32_t index) {
    const struct virtqueue *queue = &front->device->queues[index];
    struct vhost_request request = {.address = {
        .index = index,
        .desc = UVA + queue->desc.gpa,
        .used = UVA + queue->used.gpa,
        .avail = UVA + queue->avail.gpa,
    }};
    tell(front, &request, VHOST_SET_VRING_ADDR, sizeof request.address, NULL, 0, 0);
}

/* Where a queue goes on: all that the last back end used, the guest has seen; what it had only taken is taken again. */
static uint16_t base_of(struct vhost_front *front, uint32_t index) {
    struct virtio_device *device = front->device;
    uint16_t base = 0;
    if (!front->queues[index].before)
        return 0;
    slot_lock(device->memory);
    const uint16_t *used =
        slot_hva(device->memory, device->queues[index].used.gpa + offsetof(struct vring_used, idx), sizeof *used, 0);
    if (used)
        base = __atomic_load_n(used, __ATOMIC_ACQUIRE);
    slot_unlock(device->memory);
    return base;
}

void vhost_tell_queue(struct vhost_front *front, uint32_t index) {
    struct vhost_queue *queue = &front->queues[index];
    switch (queue->told++) {
    case TELL_SIZE:
        vhost_tell_state(front, VHOST_SET_VRING_NUM, index, front->device->queues[index].size);
        return;
    case TELL_BASE:
        vhost_tell_state(front, VHOST_SET_VRING_BASE, index, base_of(front, index));
        return;
    case TELL_ADDRESS:
        tell_address(front, index);
        return;
    case TELL_ERRORS:
        tell_event(front, VHOST_SET_VRING_ERR, index, front->errors);
        return;
    case TELL_CALL:
        tell_event(front, VHOST_SET_VRING_CALL, index, virtio_pci_call(front->device, index));
        return;
    default:
        queue->given = 1; /* Before it is sent: from then on the back end may use it. */
        tell_event(front, VHOST_SET_VRING_KICK, index, virtio_pci_kick(front->device, index));
    }
}

