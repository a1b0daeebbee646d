/*
 * common_cfg.h: the common configuration structure of virtio over PCI (virtio 1.2, 4.1.4.3), as a state machine of its own:
 * reads and writes of any offset and size, which change the device and the vectors and nothing else.
 */
#ifndef HOSTD_VIRTIO_COMMON_CFG_H
#define HOSTD_VIRTIO_COMMON_CFG_H

#include "device.h"

#define COMMON_CFG_SIZE 64
#define VIRTIO_NO_VECTOR 0xffff

struct common_cfg {
    struct virtio_device *device;
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector;
    uint16_t vectors; /* how many there are; any other one is refused by VIRTIO_NO_VECTOR */
};

/* All under the device's lock. Back to the state after reset. */
void common_cfg_reset(struct common_cfg *common);

/* `size` bytes at `offset` of the structure; what is past its end is zero. */
void common_cfg_read(struct common_cfg *common, uint32_t offset, uint8_t *to, uint32_t size);

/* A write counts if it is exactly one field, or half of a 64-bit one (4.1.3.1); others have no effect. */
void common_cfg_write(struct common_cfg *common, uint32_t offset, uint64_t value, uint32_t size);

/* For templates (state.h). The queues' vectors are looked at, too. */
struct state;
void common_cfg_state(struct common_cfg *common, struct state *state);

#endif
