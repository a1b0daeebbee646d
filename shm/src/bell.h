/*
 * bell.h: how an end of a channel rings its peers and sleeps until it is rung.
 *
 * On the host a bell is an eventfd: written by who rings, in an epoll set of each who waits. In a Linux guest it is a vector of
 * peer 0 of the region's ivshmem device: a store to the Doorbell register rings, the device's interrupt, heard by UIO, wakes;
 * and where UIO is absent, who waits naps and looks.
 */
#ifndef SHM_BELL_H
#define SHM_BELL_H

#include <stdint.h>

/* Registers of ivshmem (QEMU, docs/specs/ivshmem-spec.txt), as indices of 32-bit words. */
enum ivshmem_register { IVSHMEM_MASK = 0, IVSHMEM_STATUS = 1, IVSHMEM_POSITION = 2, IVSHMEM_DOORBELL = 3 };

/* An ivshmem device as a Linux guest's process has it. */
struct bell_device {
    uint32_t *registers;          /* BAR0; NULL: nobody can be rung */
    const char *uio;              /* "/dev/uioN"; NULL: nothing wakes, so who waits naps */
    const char *config;           /* the device's PCI configuration space in sysfs */
};

struct bell {
    int open;
    int ring_fd;                  /* eventfd, or -1 */
    int wait_fd;                  /* epoll set or UIO device, or -1 */
    int config_fd;                /* with UIO */
    uint8_t command;              /* PCI command register's upper byte, interrupts enabled */
    volatile uint32_t *registers;
    uint32_t ring_value;          /* for the Doorbell register */
    int64_t slice_ns;             /* the longest sleep between two looks */
};

/* All of these: 0, or -1 with errno. */
int bell_open_eventfds(struct bell *bell, int ring_fd, int wait_fd);
/* `number`: of the bell that is rung. */
int bell_open_device(struct bell *bell, const struct bell_device *device, uint32_t number);
void bell_close(struct bell *bell);

/* Whether anything can be rung. */
int bell_ring(struct bell *bell);

/* Whether a ring is heard: else setting sleep flags is in vain. */
int bell_hears(const struct bell *bell);

/* Sleeps: 1 when it rang, 0 after limit_ns, -1 with errno. */
int bell_wait(struct bell *bell, int64_t limit_ns);

#endif
