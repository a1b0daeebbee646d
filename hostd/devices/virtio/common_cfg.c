/* common_cfg.c: see common_cfg.h. */
#include "common_cfg.h"
#include "state.h"

#include <linux/virtio_pci.h>
#include <stddef.h>
#include <string.h>

#define AT(field) offsetof(struct virtio_pci_common_cfg, field)

void common_cfg_reset(struct common_cfg *common) {
    common->device_feature_select = common->driver_feature_select = 0;
    common->queue_select = 0;
    common->config_vector = VIRTIO_NO_VECTOR;
}

static struct virtqueue *selected(const struct common_cfg *common) {
    struct virtio_device *device = common->device;
    return common->queue_select < device->queue_count ? &device->queues[common->queue_select] : NULL;
}

/* The 32 bits of `features` that `select` shows; there are none past bit 63. */
static uint32_t window(uint64_t features, uint32_t select) {
    return select < 2 ? (uint32_t)(features >> (32 * select)) : 0;
}

void common_cfg_read(struct common_cfg *common, uint32_t offset, uint8_t *to, uint32_t size) {
    struct virtio_device *device = common->device;
    const struct virtqueue *queue = selected(common);
    struct virtio_pci_common_cfg image = {
        .device_feature_select = common->device_feature_select,
        .device_feature = window(device->offered, common->device_feature_select),
        .guest_feature_select = common->driver_feature_select,
        .guest_feature = window(device->accepted, common->driver_feature_select),
        .msix_config = common->config_vector,
        .num_queues = (uint16_t)device->queue_count,
        .device_status = device->status,
        .config_generation = device->generation,
        .queue_select = common->queue_select,
    };
    if (queue) {
        image.queue_size = queue->size;
        image.queue_msix_vector = queue->vector;
        image.queue_enable = queue->enabled;
        image.queue_notify_off = common->queue_select;
        image.queue_desc_lo = (uint32_t)queue->desc.gpa;
        image.queue_desc_hi = (uint32_t)(queue->desc.gpa >> 32);
        image.queue_avail_lo = (uint32_t)queue->avail.gpa;
        image.queue_avail_hi = (uint32_t)(queue->avail.gpa >> 32);
        image.queue_used_lo = (uint32_t)queue->used.gpa;
        image.queue_used_hi = (uint32_t)(queue->used.gpa >> 32);
    }
    const uint8_t *bytes = (const uint8_t *)&image;
    for (uint32_t i = 0; i < size; i++)
        to[i] = offset < sizeof image && i < sizeof image - offset ? bytes[offset + i] : 0;
}

static void accept_features(struct virtio_device *device, uint32_t select, uint32_t value) {
    /* 3.1.1 step 5: none after FEATURES_OK. Those that were never offered are kept, and refused then. */
    if (select > 1 || (device->status & VIRTIO_CONFIG_S_FEATURES_OK))
        return;
    uint64_t mask = 0xffffffffull << (32 * select);
    device->accepted = (device->accepted & ~mask) | (uint64_t)value << (32 * select);
}

/* Writes half of an address, or all of it. */
static int write_address(uint64_t *gpa, uint32_t at, uint32_t offset, uint64_t value, uint32_t size) {
    if (offset == at && size == 8)
        *gpa = value;
    else if (offset == at && size == 4)
        *gpa = (*gpa & ~0xffffffffull) | (uint32_t)value;
    else if (offset == at + 4 && size == 4)
        *gpa = (*gpa & 0xffffffffull) | value << 32;
    else
        return 0;
    return 1;
}

static uint16_t vector(const struct common_cfg *common, uint64_t value) {
    /* 4.1.5.1.2.1: a vector that can't be had reads back as NO_VECTOR. */
    return value < common->vectors ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

void common_cfg_state(struct common_cfg *common, struct state *state) {
    STATE(state, common->device_feature_select);
    STATE(state, common->driver_feature_select);
    STATE(state, common->queue_select);
    STATE(state, common->config_vector);
    common->config_vector = vector(common, common->config_vector);
    for (uint32_t i = 0; i < common->device->queue_count; i++)
        common->device->queues[i].vector = vector(common, common->device->queues[i].vector);
}

static void write_queue(struct common_cfg *common, uint32_t offset, uint64_t value, uint32_t size) {
    struct virtqueue *queue = selected(common);
    if (!queue)
        return;
    if (offset == AT(queue_msix_vector) && size == 2) {
        queue->vector = vector(common, value);
        return;
    }
    /* 4.1.4.3.2: the rest is set before the queue is enabled, and 0 is never written to queue_enable. */
    if (queue->enabled)
        return;
    if (offset == AT(queue_size) && size == 2) {
        uint16_t wanted = (uint16_t)value;
        if (wanted && wanted <= queue->max && !(wanted & (wanted - 1)))
            queue->size = wanted;
    } else if (offset == AT(queue_enable) && size == 2) {
        if (value == 1)
            virtio_enable(common->device, common->queue_select);
    } else if (!write_address(&queue->desc.gpa, AT(queue_desc_lo), offset, value, size) &&
               !write_address(&queue->avail.gpa, AT(queue_avail_lo), offset, value, size)) {
        write_address(&queue->used.gpa, AT(queue_used_lo), offset, value, size);
    }
}

void common_cfg_write(struct common_cfg *common, uint32_t offset, uint64_t value, uint32_t size) {
    struct virtio_device *device = common->device;
    switch (offset << 4 | size) {
    case AT(device_feature_select) << 4 | 4:
        common->device_feature_select = (uint32_t)value;
        return;
    case AT(guest_feature_select) << 4 | 4:
        common->driver_feature_select = (uint32_t)value;
        return;
    case AT(guest_feature) << 4 | 4:
        accept_features(device, common->driver_feature_select, (uint32_t)value);
        return;
    case AT(msix_config) << 4 | 2:
        common->config_vector = vector(common, value);
        return;
    case AT(device_status) << 4 | 1:
        virtio_set_status(device, (uint8_t)value);
        if (!(uint8_t)value)
            common_cfg_reset(common);
        return;
    case AT(queue_select) << 4 | 2:
        common->queue_select = (uint16_t)value;
        return;
    default:
        write_queue(common, offset, value, size);
    }
}
