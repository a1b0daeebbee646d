/* device.c: see device.h. */
#include "device.h"
#include "state.h"

#include <errno.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

/* Chains served before other work of the thread gets its turn: a driver that never stops may not hold the thread. */
enum { BATCH = 2 * VIRTQUEUE_MAX };

int virtio_init(struct virtio_device *device, const struct virtio_ops *ops, struct slot_rows *memory,
                uint64_t features, uint32_t config_size, uint32_t count, uint16_t size) {
    device->ops = ops;
    device->memory = memory;
    device->offered = features | VIRTIO_RING_FEATURES;
    device->config_size = config_size;
    device->queue_count = count;
    device->queues = calloc(count, sizeof *device->queues);
    if (!device->queues)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        device->queues[i].max = size;
        device->queues[i].memory = memory;
        virtqueue_reset(&device->queues[i]);
    }
    return -pthread_mutex_init(&device->lock, NULL);
}

void virtio_close(struct virtio_device *device) {
    free(device->queues);
    device->queues = NULL;
    pthread_mutex_destroy(&device->lock);
    if (device->ops->close)
        device->ops->close(device);
}

void virtio_reset(struct virtio_device *device) {
    if (device->status && device->ops->stopped)
        device->ops->stopped(device);
    for (uint32_t i = 0; i < device->queue_count; i++)
        virtqueue_reset(&device->queues[i]);
    device->status = 0;
    device->broken = VQ_OK;
    device->accepted = 0;
    device->resets++;
}

/* 3.1.1 steps 5 and 6: is what the driver accepted something that can work? */
static int features_fit(const struct virtio_device *device) {
    return !(device->accepted & ~device->offered) && virtio_has(device, VIRTIO_F_VERSION_1);
}

void virtio_set_status(struct virtio_device *device, uint8_t status) {
    if (!status) {
        virtio_reset(device);
        return;
    }
    /* The driver clears no bit (2.1.1), and NEEDS_RESET is the device's. */
    uint8_t before = device->status;
    uint8_t now = before | (status & (uint8_t)~VIRTIO_CONFIG_S_NEEDS_RESET);
    if (!(before & VIRTIO_CONFIG_S_FEATURES_OK) && (now & VIRTIO_CONFIG_S_FEATURES_OK) && !features_fit(device))
        now &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    if (!(now & VIRTIO_CONFIG_S_FEATURES_OK))
        now &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
    device->status = now;
    if (!(before & VIRTIO_CONFIG_S_DRIVER_OK) && (now & VIRTIO_CONFIG_S_DRIVER_OK)) {
        if (device->ops->started)
            device->ops->started(device);
        /* A driver may fill its queues before and not notify again. */
        for (uint32_t i = 0; i < device->queue_count; i++)
            if (device->queues[i].enabled)
                device->again(device, i);
    }
}

void virtio_enable(struct virtio_device *device, uint32_t index) {
    /* Features are settled first: they say what the rings look like. */
    struct virtqueue *queue = &device->queues[index];
    if (queue->enabled || !(device->status & VIRTIO_CONFIG_S_FEATURES_OK))
        return;
    if (virtqueue_start(queue, virtio_has(device, VIRTIO_RING_F_INDIRECT_DESC), virtio_has(device, VIRTIO_RING_F_EVENT_IDX)))
        virtio_break(device, VQ_RING);
}

/* Checked, where it is taken back: what virtio_set_status and virtio_enable would have let the driver do, and no more. */
static void features_state(struct virtio_device *device, struct state *state) {
    STATE(state, device->accepted);
    STATE(state, device->status);
    STATE(state, device->broken);
    STATE(state, device->config_changed);
    STATE(state, device->generation);
    if (state->saving)
        return;
    int settled = (device->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
    if (device->broken >= VQ_ERRORS || (settled && !features_fit(device) && !device->ops->external) ||
        (!settled && (device->status & VIRTIO_CONFIG_S_DRIVER_OK)))
        state_wrong(state, "its virtio-%s device is in a state that this one can't be in", device->ops->name);
}

static void config_state(struct virtio_device *device, struct state *state) {
    uint8_t config[VIRTIO_CONFIG_MAX];
    memcpy(config, device->config, sizeof config);
    STATE(state, config);
    if (state->saving || !state_fine(state))
        return;
    if (device->ops->fixed_config && memcmp(config, device->config, device->config_size))
        state_wrong(state, "its virtio-%s device is not this one: the file behind it has another size", device->ops->name);
    else
        memcpy(device->config + device->ops->own_config, config + device->ops->own_config, sizeof config - device->ops->own_config);
}

void virtio_state(struct virtio_device *device, struct state *state) {
    if (!state_alike(state, &device->queue_count, sizeof device->queue_count))
        state_wrong(state, "its virtio-%s device has another number of queues", device->ops->name);
    features_state(device, state);
    config_state(device, state);
    for (uint32_t i = 0; i < device->queue_count && state_fine(state); i++)
        if (virtqueue_state(&device->queues[i], state))
            state_wrong(state, "a queue of its virtio-%s device can't be", device->ops->name);
    if (device->ops->state && state_fine(state))
        device->ops->state(device, state);
}

void virtio_resume(struct virtio_device *device) {
    if (!virtio_live(device))
        return;
    if (device->ops->resumed)
        device->ops->resumed(device);
    for (uint32_t i = 0; i < device->queue_count; i++) /* What was notified before is still to be served. */
        if (device->queues[i].enabled && !device->ops->external)
            device->again(device, i);
}

void virtio_break(struct virtio_device *device, enum virtqueue_error error) {
    device->errors[error]++;
    if (device->broken)
        return;
    device->broken = (uint8_t)error;
    device->breaks++;
    device->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    if (device->ops->stopped)
        device->ops->stopped(device);
    if (device->status & VIRTIO_CONFIG_S_DRIVER_OK)
        device->interrupt(device, VIRTIO_CONFIG_SOURCE);
}

void virtio_config_change(struct virtio_device *device) {
    device->config_changed = 1;
    if (device->status & VIRTIO_CONFIG_S_DRIVER_OK)
        device->interrupt(device, VIRTIO_CONFIG_SOURCE);
}

void virtio_config_read(struct virtio_device *device, uint32_t offset, uint8_t *to, uint32_t size) {
    /* 4.1.4.3.1: the generation moves when what is read may differ from what was read before. */
    if (device->config_changed) {
        device->config_changed = 0;
        device->generation++;
    }
    for (uint32_t i = 0; i < size; i++)
        to[i] = offset < device->config_size && i < device->config_size - offset ? device->config[offset + i] : 0;
}

void virtio_config_write(struct virtio_device *device, uint32_t offset, const uint8_t *from, uint32_t size) {
    if (offset >= device->config_size || size > device->config_size - offset)
        return;
    for (uint32_t i = 0; i < size; i++)
        if (offset + i >= device->config_writable_from && offset + i < device->config_writable_to)
            device->config[offset + i] = from[i];
    if (device->ops->config_written)
        device->ops->config_written(device, offset, size);
}

void virtio_serve(struct virtio_device *device, uint32_t index) {
    struct virtqueue *queue = &device->queues[index];
    queue->kicks++;
    if (!virtio_live(device) || !queue->enabled)
        return;
    slot_lock(device->memory);
    virtqueue_begin(queue);
    int error = device->ops->serve(device, index);
    slot_unlock(device->memory);
    if (error)
        virtio_break(device, (enum virtqueue_error)-error);
}

int virtio_signal(struct virtio_device *device, uint32_t index) {
    int wanted = virtqueue_signal(&device->queues[index]);
    if (wanted > 0)
        device->interrupt(device, (int)index);
    return wanted < 0 ? wanted : 0;
}

int virtio_serve_chains(struct virtio_device *device, uint32_t index) {
    struct virtqueue *queue = &device->queues[index];
    struct virtqueue_chain *chain = &device->chain;
    int result, served = 0;
    for (;;) {
        result = virtqueue_pop(queue, chain);
        if (result == 0)
            result = virtqueue_rearm(queue);
        else if (result > 0) {
            int64_t written = device->ops->chain(device, index, chain);
            if (written == VIRTIO_LATER) {
                virtqueue_unpop(queue);
                result = 0;
            } else {
                result = written < 0 ? (int)written : virtqueue_push(queue, chain->head, (uint32_t)written);
                if (result == 0)
                    result = 1;
            }
        }
        if (result <= 0)
            break;
        if (++served == BATCH) {
            device->again(device, index);
            result = 0;
            break;
        }
    }
    /* What was done is told even when the next chain is bad. */
    int error = virtio_signal(device, index);
    return result < 0 ? result : error;
}
