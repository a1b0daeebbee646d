/* bell.c: see bell.h. */
#define _GNU_SOURCE
#include "bell.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

/*
 * A sleeper looks around this often even if no bell rings: a peer that never rings costs time, not a hang.
 *
 * With UIO a ring can be lost between two waiters of one guest: the device has one interrupt and one status bit for all its
 * bells, and who clears it for a ring that it has heard may clear it for one whose interrupt was still on its way. So there
 * the slice is shorter.
 */
static const int64_t SLICE_NS = 200000000, UIO_SLICE_NS = 20000000;

int bell_open_eventfds(struct bell *bell, int ring_fd, int wait_fd) {
    *bell = (struct bell){.ring_fd = ring_fd, .config_fd = -1, .slice_ns = SLICE_NS};
    bell->wait_fd = epoll_create1(EPOLL_CLOEXEC);
    if (bell->wait_fd < 0)
        return -1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (wait_fd >= 0 && epoll_ctl(bell->wait_fd, EPOLL_CTL_ADD, wait_fd, &event)) {
        int error = errno;
        close(bell->wait_fd);
        errno = error;
        return -1;
    }
    bell->open = 1;
    return 0;
}

/* The upper byte of PCI's command register, and a bit of it. */
enum { COMMAND_HIGH = 5, INTERRUPT_DISABLE = 1 << 2 };

/*
 * Lowers the interrupt and lets the next one through: uio_pci_generic's handler sets "Interrupt Disable", bit 10 of PCI's
 * command register (PCI Local Bus 3.0, 6.2.2), and leaves clearing it to us. To be done before looking at the ring: what is
 * sent after this raises a new interrupt, what was sent before is seen.
 */
static void rearm(struct bell *bell) {
    (void)bell->registers[IVSHMEM_STATUS];
    if (pwrite(bell->config_fd, &bell->command, 1, COMMAND_HIGH) != 1)
        return; /* Then the slices have to do. */
}

int bell_open_device(struct bell *bell, const struct bell_device *device, uint32_t number) {
    *bell = (struct bell){.ring_fd = -1, .wait_fd = -1, .config_fd = -1, .slice_ns = UIO_SLICE_NS};
    bell->registers = device->registers;
    bell->ring_value = number & 0xffff; /* peer 0, the region itself, in the upper half */
    bell->open = 1;
    if (!device->registers || !device->uio)
        return 0;
    bell->wait_fd = open(device->uio, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    bell->config_fd = open(device->config, O_RDWR | O_CLOEXEC);
    if (bell->wait_fd < 0 || bell->config_fd < 0) {
        int error = errno;
        bell_close(bell);
        errno = error;
        return -1;
    }
    uint32_t count;
    if (read(bell->wait_fd, &count, sizeof count) < 0 && errno == EIO) {
        close(bell->wait_fd); /* A device without an interrupt has a UIO file all the same. */
        bell->wait_fd = -1;
        return 0;
    }
    /* Read once: a read of configuration space is an exit from the guest, and nobody changes the other bits. */
    if (pread(bell->config_fd, &bell->command, 1, COMMAND_HIGH) != 1)
        bell->command = 0;
    bell->command &= (uint8_t)~INTERRUPT_DISABLE;
    bell->registers[IVSHMEM_MASK] = 0xffffffff;
    rearm(bell); /* One who died over an interrupt left it disabled. */
    return 0;
}

void bell_close(struct bell *bell) {
    if (bell->wait_fd >= 0)
        close(bell->wait_fd);
    if (bell->config_fd >= 0)
        close(bell->config_fd);
    bell->wait_fd = bell->config_fd = -1;
    bell->open = 0;
}

int bell_ring(struct bell *bell) {
    uint64_t one = 1;
    if (bell->registers) {
        bell->registers[IVSHMEM_DOORBELL] = bell->ring_value;
        return 1;
    }
    if (bell->ring_fd < 0)
        return 0;
    while (write(bell->ring_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
    return 1;
}

int bell_hears(const struct bell *bell) {
    return bell->wait_fd >= 0;
}

static int wait_for_interrupt(struct bell *bell, int limit_ms) {
    struct pollfd poller = {.fd = bell->wait_fd, .events = POLLIN};
    uint32_t count;
    int woken = poll(&poller, 1, limit_ms);
    if (woken <= 0)
        return woken;
    if (read(bell->wait_fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return -1;
    rearm(bell);
    return 1;
}

int bell_wait(struct bell *bell, int64_t limit_ns) {
    if (bell->wait_fd < 0) {
        struct timespec nap = {.tv_sec = limit_ns / 1000000000, .tv_nsec = limit_ns % 1000000000};
        return nanosleep(&nap, NULL);
    }
    int limit_ms = (int)((limit_ns + 999999) / 1000000);
    if (bell->registers)
        return wait_for_interrupt(bell, limit_ms);
    struct epoll_event event;
    return epoll_wait(bell->wait_fd, &event, 1, limit_ms);
}
