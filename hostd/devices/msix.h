/*
 * msix.h: MSI-X of a PCI device (PCI Local Bus 3.0, 6.8.2): the table and the pending bits in a BAR of their own.
 *
 * Accesses of any size and alignment work, byte by byte. All state is under a lock of its own, the last in the order of
 * locks: msix_raise may be called with any other held.
 */
#ifndef HOSTD_DEVICES_MSIX_H
#define HOSTD_DEVICES_MSIX_H

#include <pthread.h>
#include <stdint.h>

#define MSIX_VECTORS 64        /* most of one device */
#define MSIX_PBA 0x800         /* where the pending bits begin; the table is at 0 */
#define MSIX_BAR_SIZE 0x1000

struct pci_device;
struct state;

struct msix_vector {
    uint8_t entry[16];         /* as the guest wrote it: address, upper address, data, vector control */
    int pending;
    int fd;                    /* routed: the eventfd that stands for the vector; else -1 */
    uint32_t gsi;
    int attached;              /* KVM raises the interrupt when the eventfd is signalled */
    int routed;                /* the GSI's route is `address` and `data` */
    uint64_t address;
    uint32_t data;
};

struct msix {
    pthread_mutex_t lock;
    uint32_t count;            /* 0: the device has no MSI-X */
    uint8_t capability;        /* its offset in the configuration space */
    int enabled, masked;       /* message control, as last written */
    struct msix_vector vectors[MSIX_VECTORS];
    uint64_t sent, held;       /* counters: interrupts sent by msix_raise; kept as pending */
};

/* Gives the device `count` vectors, with BAR `bar` for them alone. Before the machine starts. 0 or -errno. */
int msix_add(struct pci_device *device, uint32_t count, int bar);

/* Has the driver turned MSI-X on? Otherwise the device uses pci_intx. From any thread. */
int msix_enabled(struct pci_device *device);

/*
 * Raise a vector: sent, or pending while masked; nothing when MSI-X is off or there is no such vector. From any
 * thread.
 */
void msix_raise(struct pci_device *device, uint32_t vector);

/*
 * From now on the eventfd `fd` stands for `vector` whenever MSI-X is on: KVM sends the interrupt itself, and no process
 * sees it. While the vector is masked the signal stays in the eventfd and shows as pending. -1 ends it. The device must
 * not read the eventfd while MSI-X is on. 0 or -errno.
 */
int msix_route(struct pci_device *device, uint32_t vector, int fd);

/* Of the PCI core: message control was written; reset. */
void msix_state(struct pci_device *device, struct state *state); /* the table and what is pending; message control is there */
void msix_control(struct pci_device *device, uint16_t control);
void msix_reset(struct pci_device *device);

#endif
