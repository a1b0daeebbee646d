/*
 * ivshmem.h: a region as a PCI device: QEMU's "Device Specification for Inter-VM shared memory device", revision 1.
 *
 * BAR0 registers, BAR1 MSI-X, BAR2 the region. Doorbells are eventfds: KVM signals them, and raises this guest's
 * vectors.
 */
#ifndef HOSTD_DEVICES_IVSHMEM_H
#define HOSTD_DEVICES_IVSHMEM_H

#include "machine.h"

/* One doorbell that the guest may ring: the write of (peer << 16 | vector) signals `fd`. */
struct ivshmem_peer {
    uint16_t peer, vector;
    int fd;
};

/*
 * `position`: this guest's id among the peers, 1 and up. `vectors`: its own eventfds. `bells`: eventfds of the region
 * on which this guest also waits; they have other waiters and are never read. All descriptors stay the caller's and
 * outlive it.
 */
struct ivshmem_config {
    const char *name;
    uint64_t size;                /* of the region, in bytes; BAR2 is the next power of two */
    uint16_t position;
    const int *vectors;
    uint32_t vector_count;        /* at most MSIX_VECTORS; 0: the region alone, without interrupts */
    const int *bells;
    uint32_t bell_count;
    const struct ivshmem_peer *peers;
    uint32_t peer_count;
};

/* What `hostd inspect` shows. */
struct ivshmem_counters {
    uint64_t rings;               /* doorbells that KVM didn't take, served as exits */
    uint64_t unknown;             /* of them, to no peer or vector that there is */
    uint64_t interrupts;          /* bells and vectors that the I/O thread passed on */
};
void ivshmem_count(struct machine *machine, uint32_t slot, struct ivshmem_counters *counters);

/* Returns the slot or -errno. */
int ivshmem_add(struct machine *machine, const struct ivshmem_config *config);

#endif
