/* transport.c: see transport.h. */
#include "transport.h"

#include <errno.h>
#include <linux/virtio_pci.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common_cfg.h"
#include "state.h"

/* Where the structures are in BAR 0; the notification addresses are 4 bytes apart. */
enum {
    AT_COMMON = 0x0000,
    AT_ISR = 0x1000,
    AT_CONFIG = 0x2000,
    AT_NOTIFY = 0x3000,
    BAR_SIZE = 0x4000,
    NOTIFY_STEP = 4,
};

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 }; /* 4.1.4.5 */

/* One queue's two eventfds. */
struct queue_events {
    struct loop_handler kick, call; /* fd -1: none */
    uint16_t routed;                /* of an external device: the vector that KVM raises by `call`, or VIRTIO_NO_VECTOR */
};

struct virtio_pci {
    struct pci_device pci;
    struct virtio_device *device;
    struct common_cfg common;
    pthread_mutex_t isr_lock; /* the ISR and the line, which must tell the same; under any lock but the interrupts' */
    uint8_t isr;
    uint8_t window;           /* offset of the configuration access capability (4.1.4.9) */
    struct loop *loop, own;   /* where the queues are served; a loop of its own, if it has one */
    int held;                 /* that ran when it was held */
    struct queue_events *events;
};

static struct virtio_pci *of(struct virtio_device *device) {
    return device->transport;
}

/* --- interrupts --- */

static void interrupt(struct virtio_device *device, int source) {
    struct virtio_pci *virtio = of(device);
    if (msix_enabled(&virtio->pci)) {
        uint16_t vector = source < 0 ? virtio->common.config_vector : device->queues[source].vector;
        if (vector != VIRTIO_NO_VECTOR)
            msix_raise(&virtio->pci, vector);
        return;
    }
    pthread_mutex_lock(&virtio->isr_lock);
    virtio->isr |= source < 0 ? ISR_CONFIG : ISR_QUEUE;
    pci_intx(&virtio->pci, 1);
    pthread_mutex_unlock(&virtio->isr_lock);
}

/* 4.1.4.5.1: reading it clears it and releases the line. Without the device's lock: it may be held for a while. */
static uint8_t take_isr(struct virtio_pci *virtio) {
    pthread_mutex_lock(&virtio->isr_lock);
    uint8_t isr = virtio->isr;
    virtio->isr = 0;
    pci_intx(&virtio->pci, 0);
    pthread_mutex_unlock(&virtio->isr_lock);
    return isr;
}

/* --- notifications --- */

static void signal_event(int fd) {
    uint64_t one = 1;
    ssize_t put = write(fd, &one, sizeof one); /* Fails only when it is signalled as often as can be. */
    (void)put;
}

static void again(struct virtio_device *device, uint32_t queue) {
    signal_event(of(device)->events[queue].kick.fd);
}

/* Takes back the eventfd's count; 0 if there was none. */
static int take_event(int fd) {
    uint64_t count;
    return read(fd, &count, sizeof count) == sizeof count;
}

static void kicked(struct loop_handler *handler, uint32_t events) {
    (void)events;
    struct virtio_pci *virtio = handler->ctx;
    uint32_t queue = (uint32_t)((struct queue_events *)((char *)handler - offsetof(struct queue_events, kick)) - virtio->events);
    if (!take_event(handler->fd))
        return;
    pthread_mutex_lock(&virtio->device->lock);
    virtio_serve(virtio->device, queue);
    pthread_mutex_unlock(&virtio->device->lock);
}

/* The other process used buffers. */
static void called(struct loop_handler *handler, uint32_t events) {
    (void)events;
    struct virtio_pci *virtio = handler->ctx;
    uint32_t queue = (uint32_t)((struct queue_events *)((char *)handler - offsetof(struct queue_events, call)) - virtio->events);
    if (!take_event(handler->fd))
        return;
    pthread_mutex_lock(&virtio->device->lock);
    if (virtio_live(virtio->device))
        interrupt(virtio->device, (int)queue);
    pthread_mutex_unlock(&virtio->device->lock);
}

/* The vector that `call` alone stands for, or VIRTIO_NO_VECTOR: then the I/O thread raises the interrupt. */
static uint16_t vector_of(const struct virtio_pci *virtio, uint32_t queue) {
    const struct virtio_device *device = virtio->device;
    uint16_t vector = device->queues[queue].vector;
    if (!virtio_live(device) || !device->queues[queue].enabled || !msix_enabled((struct pci_device *)&virtio->pci))
        return VIRTIO_NO_VECTOR;
    for (uint32_t i = 0; i < device->queue_count; i++)
        if (i != queue && device->queues[i].enabled && device->queues[i].vector == vector)
            return VIRTIO_NO_VECTOR; /* A vector has one eventfd. */
    return vector;
}

/* After any change of vectors, of MSI-X or of the device's life, under its lock: who raises the interrupts of its queues? */
static void settle_calls(struct virtio_pci *virtio) {
    if (!virtio->device->ops->external)
        return;
    for (uint32_t i = 0; i < virtio->device->queue_count; i++) { /* First all go: two may have changed places. */
        struct queue_events *events = &virtio->events[i];
        if (events->routed == VIRTIO_NO_VECTOR || events->routed == vector_of(virtio, i))
            continue;
        msix_route(&virtio->pci, events->routed, -1);
        loop_add(virtio->loop, &events->call, EPOLLIN);
        events->routed = VIRTIO_NO_VECTOR;
    }
    for (uint32_t i = 0; i < virtio->device->queue_count; i++) {
        struct queue_events *events = &virtio->events[i];
        uint16_t vector = vector_of(virtio, i);
        if (vector == VIRTIO_NO_VECTOR || events->routed == vector)
            continue;
        loop_remove(virtio->loop, &events->call); /* It must not be read by two. */
        if (msix_route(&virtio->pci, vector, events->call.fd) == 0)
            events->routed = vector;
        else /* No more routes in this VM. */
            loop_add(virtio->loop, &events->call, EPOLLIN);
    }
}

static void watched(struct loop_handler *handler, uint32_t events) {
    (void)events;
    struct virtio_watch *watch = handler->ctx;
    pthread_mutex_lock(&watch->device->lock);
    if (watch->fd >= 0)
        watch->ready(watch->device, watch);
    pthread_mutex_unlock(&watch->device->lock);
}

static void watch(struct virtio_device *device, struct virtio_watch *watch, uint32_t events) {
    struct loop *loop = of(device)->loop;
    if (events == VIRTIO_UNWATCHED) {
        loop_remove(loop, &watch->handler);
        watch->watching = 0;
        return;
    }
    if (watch->watching && watch->events == events)
        return;
    watch->events = events;
    if (watch->watching) {
        loop_change(loop, &watch->handler, events);
        return;
    }
    watch->handler.fd = watch->fd;
    watch->handler.fn = watched;
    watch->handler.ctx = watch;
    watch->watching = loop_add(loop, &watch->handler, events) == 0;
}

/* --- BAR 0 --- */

static uint64_t bar_read(struct pci_device *pci, uint64_t offset, uint32_t size) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    uint32_t at = (uint32_t)(offset & 0xfff);
    uint8_t bytes[8] = {0};
    uint64_t value;
    switch (offset & ~0xfffull) {
    case AT_COMMON:
        pthread_mutex_lock(&virtio->device->lock);
        common_cfg_read(&virtio->common, at, bytes, size);
        pthread_mutex_unlock(&virtio->device->lock);
        break;
    case AT_ISR:
        if (at == 0)
            bytes[0] = take_isr(virtio);
        break;
    case AT_CONFIG:
        pthread_mutex_lock(&virtio->device->lock);
        virtio_config_read(virtio->device, at, bytes, size);
        pthread_mutex_unlock(&virtio->device->lock);
        break;
    }
    memcpy(&value, bytes, sizeof value);
    return value;
}

static void common_write(struct virtio_pci *virtio, uint32_t offset, uint64_t value, uint32_t size) {
    pthread_mutex_lock(&virtio->device->lock);
    uint64_t resets = virtio->device->resets;
    common_cfg_write(&virtio->common, offset, value, size);
    int reset = virtio->device->resets != resets;
    settle_calls(virtio);
    pthread_mutex_unlock(&virtio->device->lock);
    if (reset)
        take_isr(virtio);
}

static void bar_write(struct pci_device *pci, uint64_t offset, uint64_t value, uint32_t size) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    uint32_t at = (uint32_t)(offset & 0xfff);
    switch (offset & ~0xfffull) {
    case AT_COMMON:
        common_write(virtio, at, value, size);
        break;
    case AT_CONFIG:
        pthread_mutex_lock(&virtio->device->lock);
        virtio_config_write(virtio->device, at, (const uint8_t *)&value, size);
        pthread_mutex_unlock(&virtio->device->lock);
        break;
    case AT_NOTIFY: /* As the doorbell does: any width, any value; the address says which queue. */
        if (at % NOTIFY_STEP == 0 && at / NOTIFY_STEP < virtio->device->queue_count)
            again(virtio->device, at / NOTIFY_STEP);
        break;
    }
}

/* --- the window in configuration space: a structure of a BAR without mapping it (4.1.4.9) --- */

/* Where the window points: the BAR, or NULL unless it is an access that a BAR takes. */
static struct pci_bar *window_bar(struct virtio_pci *virtio, uint32_t *offset, uint32_t *size) {
    const uint8_t *capability = virtio->pci.config + virtio->window;
    uint8_t bar = capability[offsetof(struct virtio_pci_cap, bar)];
    *offset = pci_get(capability, offsetof(struct virtio_pci_cap, offset), 4);
    *size = pci_get(capability, offsetof(struct virtio_pci_cap, length), 4);
    if (bar >= PCI_BARS || virtio->pci.bars[bar].kind != PCI_BAR_REGISTERS || (*size != 1 && *size != 2 && *size != 4))
        return NULL;
    struct pci_bar *found = &virtio->pci.bars[bar];
    return *offset % *size == 0 && *offset <= found->size - *size ? found : NULL;
}

static int in_window(const struct virtio_pci *virtio, uint32_t offset, uint32_t size) {
    uint32_t data = virtio->window + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data);
    return offset < data + 4 && offset + size > data;
}

static void config_read(struct pci_device *pci, uint32_t offset, uint32_t size) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    uint32_t at, width;
    struct pci_bar *bar = in_window(virtio, offset, size) ? window_bar(virtio, &at, &width) : NULL;
    if (bar)
        pci_set(pci->config, virtio->window + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data), width,
                (uint32_t)bar->read(pci, at, width));
}

static void config_written(struct pci_device *pci, uint32_t offset, uint32_t size) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    uint32_t at, width;
    struct pci_bar *bar = in_window(virtio, offset, size) ? window_bar(virtio, &at, &width) : NULL;
    if (virtio->device->ops->external) { /* MSI-X may have been turned on or off. */
        pthread_mutex_lock(&virtio->device->lock);
        settle_calls(virtio);
        pthread_mutex_unlock(&virtio->device->lock);
    }
    if (bar)
        bar->write(pci, at, pci_get(pci->config, virtio->window + offsetof(struct virtio_pci_cfg_cap, pci_cfg_data), width),
                   width);
}

/* --- life --- */

static int start(struct pci_device *pci) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    return virtio->loop == &virtio->own ? loop_start(&virtio->own) : 0;
}

static void hold(struct pci_device *pci, int on) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    struct virtio_device *device = virtio->device;
    int own = virtio->loop == &virtio->own;
    if (own && on) {
        virtio->held = virtio->own.running;
        loop_stop(&virtio->own);
    }
    if (device->ops->hold) {
        pthread_mutex_lock(&device->lock);
        if (virtio_live(device))
            device->ops->hold(device, on);
        pthread_mutex_unlock(&device->lock);
    }
    if (own && !on && virtio->held && loop_start(&virtio->own))
        virtio_break(device, VQ_REQUEST); /* The host has no thread for it. */
}

static void save_or_restore(struct pci_device *pci, struct state *state) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    struct virtio_device *device = virtio->device;
    pthread_mutex_lock(&device->lock);
    virtio_state(device, state);
    common_cfg_state(&virtio->common, state);
    STATE(state, virtio->isr);
    if (!state->saving && state_fine(state)) {
        settle_calls(virtio);
        virtio_resume(device);
    }
    pthread_mutex_unlock(&device->lock);
}

static void power_on(struct pci_device *pci) {
    struct virtio_pci *virtio = (struct virtio_pci *)pci;
    pthread_mutex_lock(&virtio->device->lock);
    virtio_reset(virtio->device);
    common_cfg_reset(&virtio->common);
    settle_calls(virtio);
    pthread_mutex_unlock(&virtio->device->lock);
    take_isr(virtio);
}

static void discard(struct virtio_pci *virtio) {
    if (virtio->loop == &virtio->own) {
        loop_stop(&virtio->own);
        loop_close(&virtio->own);
    }
    for (uint32_t i = 0; virtio->events && i < virtio->device->queue_count; i++) {
        if (virtio->events[i].kick.fd >= 0)
            close(virtio->events[i].kick.fd);
        if (virtio->events[i].call.fd >= 0)
            close(virtio->events[i].call.fd);
    }
    free(virtio->events);
    pthread_mutex_destroy(&virtio->isr_lock);
    virtio_close(virtio->device);
    free(virtio);
}

static void free_device(struct pci_device *pci) {
    discard((struct virtio_pci *)pci);
}

static const struct pci_ops *ops_of(uint16_t id) {
    static const struct pci_ops all[] = {
#define OPS(title) \
    {.name = title, .config_read = config_read, .config_written = config_written, .start = start, .reset = power_on, \
     .hold = hold, .state = save_or_restore, .close = free_device}
        OPS("virtio-net"), OPS("virtio-blk"), OPS("virtio-console"), OPS("virtio-rng"), OPS("virtio-balloon"),
        OPS("virtio-pmem"), OPS("virtio"),
#undef OPS
    };
    return &all[id && id <= 5 ? id - 1 : id == 27 ? 5 : 6];
}

static int add_capability(struct virtio_pci *virtio, uint8_t type, uint32_t offset, uint32_t length, uint8_t size) {
    int at = pci_add_capability(&virtio->pci, 0x09, size); /* vendor-specific */
    if (at < 0)
        return at;
    uint8_t *capability = virtio->pci.config + at;
    capability[offsetof(struct virtio_pci_cap, cap_len)] = size;
    capability[offsetof(struct virtio_pci_cap, cfg_type)] = type;
    pci_set(capability, offsetof(struct virtio_pci_cap, offset), 4, offset);
    pci_set(capability, offsetof(struct virtio_pci_cap, length), 4, length);
    return at;
}

static int add_capabilities(struct virtio_pci *virtio) {
    struct pci_device *pci = &virtio->pci;
    struct virtio_device *device = virtio->device;
    int error = add_capability(virtio, VIRTIO_PCI_CAP_COMMON_CFG, AT_COMMON, COMMON_CFG_SIZE, 16);
    if (error >= 0)
        error = add_capability(virtio, VIRTIO_PCI_CAP_ISR_CFG, AT_ISR, 1, 16);
    if (error >= 0 && device->config_size)
        error = add_capability(virtio, VIRTIO_PCI_CAP_DEVICE_CFG, AT_CONFIG, device->config_size, 16);
    if (error >= 0)
        error = add_capability(virtio, VIRTIO_PCI_CAP_NOTIFY_CFG, AT_NOTIFY, NOTIFY_STEP * device->queue_count, 20);
    if (error < 0)
        return error;
    pci_set(pci->config, (uint32_t)error + offsetof(struct virtio_pci_notify_cap, notify_off_multiplier), 4, NOTIFY_STEP);
    int window = add_capability(virtio, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 20);
    if (window < 0)
        return window;
    virtio->window = (uint8_t)window;
    pci->write_mask[window + offsetof(struct virtio_pci_cap, bar)] = 0xff;
    memset(pci->write_mask + window + offsetof(struct virtio_pci_cap, offset), 0xff, 12); /* offset, length, data */
    return 0;
}

static int add_queues(struct virtio_pci *virtio) {
    uint32_t count = virtio->device->queue_count;
    virtio->events = calloc(count, sizeof *virtio->events);
    if (!virtio->events)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        virtio->events[i].kick.fd = virtio->events[i].call.fd = -1;
        virtio->events[i].routed = VIRTIO_NO_VECTOR;
    }
    int external = virtio->device->ops->external;
    for (uint32_t i = 0; i < count; i++) {
        struct queue_events *events = &virtio->events[i];
        events->kick = (struct loop_handler){.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .fn = kicked, .ctx = virtio};
        events->call = (struct loop_handler){.fd = -1, .fn = called, .ctx = virtio};
        if (external)
            events->call.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        struct loop_handler *ours = external ? &events->call : &events->kick;
        if (events->kick.fd < 0 || ours->fd < 0)
            return -errno;
        int error = loop_add(virtio->loop, ours, EPOLLIN);
        if (!error)
            error = pci_add_doorbell(&virtio->pci, 0, AT_NOTIFY + NOTIFY_STEP * i, 0, 0, 0, events->kick.fd);
        if (error)
            return error;
    }
    return 0;
}

static int fill(struct virtio_pci *virtio) {
    struct virtio_device *device = virtio->device;
    int error = pci_add_registers(&virtio->pci, 0, BAR_SIZE, 0, bar_read, bar_write);
    uint32_t vectors = device->queue_count + 1;
    if (!error)
        error = msix_add(&virtio->pci, vectors < MSIX_VECTORS ? vectors : MSIX_VECTORS, 1);
    if (!error)
        error = add_capabilities(virtio);
    if (!error)
        error = add_queues(virtio);
    return error;
}

int virtio_pci_add(struct machine *machine, struct virtio_device *device, const char *name, int own_thread) {
    struct virtio_pci *virtio = calloc(1, sizeof *virtio);
    if (!virtio) {
        virtio_close(device);
        return -ENOMEM;
    }
    uint32_t vectors = device->queue_count + 1;
    virtio->device = device;
    virtio->common.device = device;
    virtio->common.vectors = (uint16_t)(vectors < MSIX_VECTORS ? vectors : MSIX_VECTORS);
    common_cfg_reset(&virtio->common);
    pthread_mutex_init(&virtio->isr_lock, NULL);
    virtio->loop = &machine->loop;
    int error = 0;
    if (own_thread) {
        error = loop_open(&virtio->own);
        if (!error)
            virtio->loop = &virtio->own;
    }
    device->transport = virtio;
    device->interrupt = interrupt;
    device->again = again;
    device->watch = watch;
    struct pci_config config = {
        .vendor = VIRTIO_PCI_VENDOR,
        .device = (uint16_t)(VIRTIO_PCI_DEVICE + device->ops->id),
        .subsystem_vendor = VIRTIO_PCI_VENDOR,
        .subsystem = (uint16_t)(VIRTIO_PCI_DEVICE + device->ops->id), /* 4.1.2.1: 0x40 or higher */
        .revision = 1,
        .class_code = device->ops->pci_class,
        .interrupt_pin = 1,
    };
    if (!error)
        error = pci_add(machine, &virtio->pci, ops_of(device->ops->id), name, &config);
    if (error) {
        discard(virtio);
        return error;
    }
    error = fill(virtio); /* From here on the machine frees it. */
    return error ? error : (int)virtio->pci.slot;
}

struct virtio_device *virtio_pci_device(struct machine *machine, uint32_t slot) {
    struct pci_device *pci = slot < PCI_DEVICES ? machine->pci.devices[slot] : NULL;
    return pci && pci->ops->close == free_device ? ((struct virtio_pci *)pci)->device : NULL;
}

int virtio_pci_kick(struct virtio_device *device, uint32_t queue) {
    return queue < device->queue_count ? of(device)->events[queue].kick.fd : -1;
}

int virtio_pci_call(struct virtio_device *device, uint32_t queue) {
    return queue < device->queue_count ? of(device)->events[queue].call.fd : -1;
}

int virtio_pci_once(struct machine *machine, uint32_t slot, int timeout_ms) {
    struct virtio_device *device = virtio_pci_device(machine, slot);
    return device ? loop_once(of(device)->loop, timeout_ms) : -ENOENT;
}
