/*
 * transport.h: a virtio device on the PCI bus, modern only (virtio 1.2, 4.1).
 *
 * BAR 0 has a page for each structure of 4.1.4, BAR 1 is MSI-X: a vector for the configuration and one for each queue, as the
 * driver deals them out. Each queue has a notification address of its own, which is a doorbell: an eventfd that the I/O
 * thread (or the device's own thread) waits for.
 */
#ifndef HOSTD_VIRTIO_TRANSPORT_H
#define HOSTD_VIRTIO_TRANSPORT_H

#include "device.h"
#include "machine.h"

#define VIRTIO_PCI_VENDOR 0x1af4
#define VIRTIO_PCI_DEVICE 0x1040 /* and the type's number */

/*
 * Puts `device`, which becomes the machine's whatever is returned, in the next slot under the user's name for it. With
 * `own_thread` its queues are served in a thread of its own, since its requests may take long. The slot or -errno.
 */
int virtio_pci_add(struct machine *machine, struct virtio_device *device, const char *name, int own_thread);

/* The virtio device in a slot, or NULL. */
struct virtio_device *virtio_pci_device(struct machine *machine, uint32_t slot);

/* Of an external device: the eventfd that the guest signals, and the one that interrupts the guest. -1: no such queue. */
int virtio_pci_kick(struct virtio_device *device, uint32_t queue);
int virtio_pci_call(struct virtio_device *device, uint32_t queue);

/* Of a device with a thread of its own, before it runs: serves what is ready, as loop_once. */
int virtio_pci_once(struct machine *machine, uint32_t slot, int timeout_ms);

#endif
