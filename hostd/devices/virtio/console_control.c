/* console_control.c: see console_control.h. */
#include "console_control.h"

#include <linux/virtio_console.h>
#include <string.h>

enum { OWE_ADD = 1, OWE_CONSOLE = 2, OWE_NAME = 4 };

/* --- from the guest --- */

/* The guest closed the port: the client gets what was sent before, then its end. */
static int guest_closed(struct virtio_console *console, struct console_port *port, uint32_t index) {
    port->guest_open = 0;
    if (port->client.fd < 0 || port->terminal)
        return 0;
    uint32_t output = console_input_of(index) + 1;
    struct virtqueue *queue = &console->device.queues[output];
    int pending = 0;
    if (queue->enabled) {
        virtqueue_begin(queue);
        pending = virtqueue_pending(queue);
        if (pending < 0)
            return pending;
    }
    port->closing = 1;
    port->closing_left = (uint16_t)pending;
    if (pending)
        return console_serve_output(console, port, output);
    console_drop_client(console, port);
    return 0;
}

static int take(struct virtio_console *console, const struct virtio_console_control *message) {
    if (message->event == VIRTIO_CONSOLE_DEVICE_READY) {
        for (uint32_t i = 0; i < console->count && message->value == 1; i++)
            if (console->ports[i].exists && !console->ports[i].ready)
                console->ports[i].owed |= OWE_ADD;
        return 0;
    }
    uint32_t index = message->id;
    if (index >= console->count || !console->ports[index].exists)
        return 0; /* Of no port: nothing follows from it. */
    struct console_port *port = &console->ports[index];
    int error = 0;
    switch (message->event) {
    case VIRTIO_CONSOLE_PORT_READY:
        if (message->value != 1 || port->ready)
            break;
        port->ready = 1;
        port->owed |= OWE_NAME | (port->terminal ? OWE_CONSOLE : 0);
        break;
    case VIRTIO_CONSOLE_PORT_OPEN:
        if (message->value == 1) {
            port->guest_open = 1;
            if (port->terminal)
                terminal_more(port->terminal);
        } else if (port->guest_open) {
            error = guest_closed(console, port, index);
        }
    }
    console_update(console, port);
    return error;
}

int console_hear(struct virtio_console *console) {
    struct virtio_device *device = &console->device;
    struct virtqueue *queue = &device->queues[CONTROL_OUT];
    int result = 0;
    for (int turn = 0; turn < VIRTQUEUE_MAX; turn++) {
        result = virtqueue_pop(queue, &device->chain);
        if (result == 0) {
            result = virtqueue_rearm(queue);
            if (result > 0)
                continue;
        }
        if (result <= 0)
            break;
        struct virtio_console_control message;
        uint64_t got = chain_read(&device->chain, 0, &message, sizeof message);
        /* The chain is given back first: the answer may use `device->chain`. */
        result = virtqueue_push(queue, device->chain.head, 0);
        if (!result && got == sizeof message)
            result = take(console, &message);
        if (result)
            break;
        if (turn == VIRTQUEUE_MAX - 1)
            device->again(device, CONTROL_OUT);
    }
    int error = virtio_signal(device, CONTROL_OUT);
    return result < 0 ? result : error;
}

/* --- to the guest --- */

/* Sends one message: 1, or 0 if the guest has no buffer for it, or -error. */
static int send(struct virtio_console *console, uint32_t id, uint16_t event, uint16_t value, const char *name) {
    struct virtio_device *device = &console->device;
    struct virtqueue *queue = &device->queues[CONTROL_IN];
    int got = virtqueue_pop(queue, &device->chain);
    if (got == 0) {
        got = virtqueue_rearm(queue);
        if (got > 0)
            got = virtqueue_pop(queue, &device->chain);
    }
    if (got <= 0)
        return got;
    uint8_t bytes[sizeof(struct virtio_console_control) + CONSOLE_NAME];
    struct virtio_console_control message = {.id = id, .event = event, .value = value};
    size_t size = sizeof message, length = name ? strlen(name) : 0;
    memcpy(bytes, &message, size);
    if (name)
        memcpy(bytes + size, name, length);
    size += length;
    if (device->chain.in_size < size)
        return -VQ_REQUEST;
    chain_write(&device->chain, 0, bytes, size);
    int error = virtqueue_push(queue, device->chain.head, (uint32_t)size);
    return error ? error : 1;
}

/* Sends what one port owes: 1 when all is sent, 0 when there is no buffer, -error. */
static int tell_port(struct virtio_console *console, uint32_t index) {
    static const struct {
        uint8_t owed;
        uint16_t event;
    } steps[] = {
        {OWE_ADD, VIRTIO_CONSOLE_PORT_ADD},
        {OWE_NAME, VIRTIO_CONSOLE_PORT_NAME},
        {OWE_CONSOLE, VIRTIO_CONSOLE_CONSOLE_PORT},
    };
    struct console_port *port = &console->ports[index];
    for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++) {
        if (!(port->owed & steps[i].owed))
            continue;
        int sent = send(console, index, steps[i].event, 1, steps[i].owed == OWE_NAME ? port->name : NULL);
        if (sent <= 0)
            return sent;
        port->owed &= (uint8_t)~steps[i].owed;
    }
    int open = port->terminal != NULL || port->client.fd >= 0;
    if (!port->ready || open == port->told_open)
        return 1;
    int sent = send(console, index, VIRTIO_CONSOLE_PORT_OPEN, (uint16_t)open, NULL);
    if (sent > 0) {
        port->told_open = (uint8_t)open;
        console_update(console, port);
    }
    return sent;
}

int console_tell(struct virtio_console *console) {
    struct virtio_device *device = &console->device;
    if (!virtio_has(device, VIRTIO_CONSOLE_F_MULTIPORT) || !device->queues[CONTROL_IN].enabled)
        return 0;
    virtqueue_begin(&device->queues[CONTROL_IN]);
    int result = 1;
    for (uint32_t i = 0; i < console->count && result > 0; i++)
        if (console->ports[i].exists)
            result = tell_port(console, i);
    int error = virtio_signal(device, CONTROL_IN);
    return result < 0 ? result : error;
}
