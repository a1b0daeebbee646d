/* console.c: see console.h. The control messages are in console_control.c. */
#define _GNU_SOURCE
#include "console.h"

#include <errno.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "console_control.h"
#include "state.h"

enum { QUEUE_SIZE = 64, BATCH = 2 * QUEUE_SIZE };

/* --- what is waited for --- */

void console_update(struct virtio_console *console, struct console_port *port) {
    struct virtio_device *device = &console->device;
    /* A client is let in when the guest knows that the last one is gone: sessions never mix. */
    int accepting = virtio_live(device) && port->ready && port->client.fd < 0 && !port->told_open;
    if (port->listener.fd >= 0)
        device->watch(device, &port->listener, accepting ? EPOLLIN : VIRTIO_UNWATCHED);
    if (port->client.fd < 0)
        return;
    uint32_t events = 0;
    if (port->guest_open && !port->no_room && !port->ended)
        events |= EPOLLIN;
    if (port->parked)
        events |= EPOLLOUT;
    device->watch(device, &port->client, port->hung ? VIRTIO_UNWATCHED : events);
}

void console_drop_client(struct virtio_console *console, struct console_port *port) {
    if (port->client.fd < 0)
        return;
    console->device.watch(&console->device, &port->client, VIRTIO_UNWATCHED);
    close(port->client.fd);
    port->client.fd = -1;
    port->ended = port->hung = port->parked = port->closing = 0;
    port->parked_done = 0;
}

/* --- from the client to the guest --- */

/* Fills the guest's buffers with what the client sent. 0 or -error. */
static int serve_input(struct virtio_console *console, struct console_port *port, uint32_t index) {
    struct virtio_device *device = &console->device;
    struct virtqueue *queue = &device->queues[index];
    struct virtqueue_chain *chain = &device->chain;
    int result = 0;
    port->no_room = port->hung = 0;
    for (int turn = 0; turn < BATCH && port->guest_open && port->client.fd >= 0 && !port->ended; turn++) {
        result = virtqueue_pop(queue, chain);
        if (result == 0) {
            result = virtqueue_rearm(queue);
            if (result > 0)
                continue;
            port->no_room = 1;
        }
        if (result <= 0)
            break;
        if (!chain->in_size)
            return -VQ_REQUEST;
        ssize_t got = readv(port->client.fd, chain->pieces + chain->out_count, (int)chain->in_count);
        if (got < 0 && errno == EFAULT)
            return -VQ_ADDRESS;
        if (got <= 0) {
            virtqueue_unpop(queue);
            if (got < 0 && (errno == EAGAIN || errno == EINTR))
                break;
            port->ended = 1; /* It may still read: it goes when it hangs up. */
            if (got < 0)
                console_drop_client(console, port);
            break;
        }
        port->to_guest += (uint64_t)got;
        result = virtqueue_push(queue, chain->head, (uint32_t)got);
        if (result)
            break;
    }
    int error = virtio_signal(device, index);
    return result < 0 ? result : error;
}

/* Gives the guest what was typed at its console. 0 or -error. */
static int serve_typed(struct virtio_console *console, struct console_port *port, uint32_t index) {
    struct virtio_device *device = &console->device;
    struct virtqueue *queue = &device->queues[index];
    int result = 0;
    while (port->guest_open && port->typed_size) {
        result = virtqueue_pop(queue, &device->chain);
        if (result == 0) {
            result = virtqueue_rearm(queue);
            if (result > 0)
                continue;
        }
        if (result <= 0)
            break;
        uint64_t got = chain_write(&device->chain, 0, port->typed, port->typed_size);
        if (!got)
            return -VQ_REQUEST;
        port->typed_size -= (uint32_t)got;
        memmove(port->typed, port->typed + got, port->typed_size);
        port->to_guest += got;
        result = virtqueue_push(queue, device->chain.head, (uint32_t)got);
        if (result)
            break;
    }
    if (!port->typed_size)
        terminal_more(port->terminal);
    int error = virtio_signal(device, index);
    return result < 0 ? result : error;
}

/* --- from the guest to the client --- */

/* Sends the rest of the chain: 1 when it is done with, 0 when the client must read first, -error. */
static int forward(struct virtio_console *console, struct console_port *port, const struct virtqueue_chain *chain) {
    struct iovec pieces[VIRTQUEUE_PIECES];
    while (port->client.fd >= 0 && port->parked_done < chain->out_size) {
        struct msghdr message = {.msg_iov = pieces};
        message.msg_iovlen = chain_slice(chain, 0, port->parked_done, chain->out_size - port->parked_done, pieces);
        ssize_t sent = sendmsg(port->client.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) {
            port->parked_done += (uint64_t)sent;
            port->to_host += (uint64_t)sent;
        } else if (errno == EAGAIN) {
            return 0;
        } else if (errno == EFAULT) {
            return -VQ_ADDRESS;
        } else if (errno != EINTR) {
            console_drop_client(console, port);
        }
    }
    if (port->client.fd < 0)
        port->dropped += chain->out_size;
    port->parked_done = 0;
    return 1;
}

int console_serve_output(struct virtio_console *console, struct console_port *port, uint32_t index) {
    struct virtio_device *device = &console->device;
    struct virtqueue *queue = &device->queues[index];
    struct virtqueue_chain *chain = &device->chain;
    int result = 0;
    port->parked = 0;
    for (int turn = 0;; turn++) {
        if (port->closing && !port->closing_left)
            console_drop_client(console, port);
        result = virtqueue_pop(queue, chain);
        if (result == 0) {
            result = virtqueue_rearm(queue);
            if (result > 0)
                continue;
        }
        if (result <= 0)
            break;
        if (port->terminal) {
            for (uint32_t i = 0; i < chain->out_count; i++)
                terminal_write(port->terminal, chain->pieces[i].iov_base, (uint32_t)chain->pieces[i].iov_len);
            port->to_host += chain->out_size;
        } else {
            result = forward(console, port, chain);
            if (result <= 0) {
                port->parked = result == 0;
                virtqueue_unpop(queue);
                break;
            }
        }
        if (port->closing && port->closing_left)
            port->closing_left--;
        result = virtqueue_push(queue, chain->head, 0);
        if (result)
            break;
        if (turn == BATCH) {
            device->again(device, index);
            break;
        }
    }
    int error = virtio_signal(device, index);
    return result < 0 ? result : error;
}

/* --- events --- */

static int console_serve(struct virtio_device *device, uint32_t index) {
    struct virtio_console *console = (struct virtio_console *)device;
    if (index / 2 == 1) {
        int error = index == CONTROL_OUT ? console_hear(console) : 0;
        return error ? error : console_tell(console);
    }
    struct console_port *port = &console->ports[console_port_of(index)];
    int result = 0;
    if (port->exists) {
        if (index & 1)
            result = console_serve_output(console, port, index);
        else
            result = port->terminal ? serve_typed(console, port, index) : serve_input(console, port, index);
        console_update(console, port);
        if (!result)
            result = console_tell(console); /* The client may have gone. */
    }
    return result;
}

/* Runs one step of the device outside of a notification; what breaks, breaks the device. */
static void serve_now(struct virtio_console *console, uint32_t index) {
    struct virtio_device *device = &console->device;
    if (device->queues[index].enabled && virtio_live(device))
        virtio_serve(device, index);
}

static void client_ready(struct virtio_device *device, struct virtio_watch *watch) {
    struct virtio_console *console = (struct virtio_console *)device;
    struct console_port *port = (struct console_port *)((char *)watch - offsetof(struct console_port, client));
    uint32_t input = console_input_of((uint32_t)(port - console->ports));
    /* A call may come late, for the client before: what is true now counts. */
    struct pollfd now = {.fd = watch->fd, .events = POLLIN | POLLOUT};
    if (watch->fd < 0 || poll(&now, 1, 0) <= 0)
        return;
    if (port->parked && (now.revents & (POLLOUT | POLLHUP | POLLERR)))
        serve_now(console, input + 1);
    if (watch->fd >= 0 && (now.revents & POLLIN) && port->guest_open && !port->no_room && !port->ended) {
        port->no_room = !device->queues[input].enabled; /* Or it would be ready for ever. */
        serve_now(console, input);
    }
    if (watch->fd >= 0 && (now.revents & (POLLHUP | POLLERR))) {
        /* Bytes that the guest has no buffer for yet are still to be had; with the port closed nobody wants them. */
        char byte;
        if (port->ended || !port->guest_open || recv(watch->fd, &byte, 1, MSG_PEEK) <= 0)
            console_drop_client(console, port);
        else if (port->no_room)
            port->hung = 1;
    }
    console_update(console, port);
    serve_now(console, CONTROL_IN);
}

static void listener_ready(struct virtio_device *device, struct virtio_watch *watch) {
    struct virtio_console *console = (struct virtio_console *)device;
    struct console_port *port = (struct console_port *)((char *)watch - offsetof(struct console_port, listener));
    if (port->client.fd >= 0 || port->told_open || !port->ready)
        return;
    int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return; /* It went away again. */
    port->client.fd = fd;
    port->clients++;
    console_update(console, port);
    serve_now(console, CONTROL_IN);
}

/* --- the console's terminal --- */

static uint32_t typed_room(void *context) {
    struct virtio_console *console = context;
    struct console_port *port = &console->ports[0];
    pthread_mutex_lock(&console->device.lock);
    uint32_t room = virtio_live(&console->device) && port->guest_open ? CONSOLE_TYPED - port->typed_size : 0;
    pthread_mutex_unlock(&console->device.lock);
    return room;
}

static void typed_take(void *context, const uint8_t *bytes, uint32_t size) {
    struct virtio_console *console = context;
    struct console_port *port = &console->ports[0];
    pthread_mutex_lock(&console->device.lock);
    if (size > CONSOLE_TYPED - port->typed_size)
        size = CONSOLE_TYPED - port->typed_size;
    memcpy(port->typed + port->typed_size, bytes, size);
    port->typed_size += size;
    serve_now(console, 0);
    pthread_mutex_unlock(&console->device.lock);
}

static void console_started(struct virtio_device *device) {
    struct virtio_console *console = (struct virtio_console *)device;
    struct console_port *port = &console->ports[0];
    if (virtio_has(device, VIRTIO_CONSOLE_F_MULTIPORT) || !port->exists)
        return;
    /* 5.3.5: without control queues there is port 0, and it is always open. */
    port->ready = port->guest_open = 1;
    if (port->terminal)
        terminal_more(port->terminal);
    console_update(console, port);
}

static void console_stopped(struct virtio_device *device) {
    struct virtio_console *console = (struct virtio_console *)device;
    for (uint32_t i = 0; i < console->count; i++) {
        struct console_port *port = &console->ports[i];
        console_drop_client(console, port);
        port->owed = port->ready = port->guest_open = port->told_open = port->no_room = port->parked = 0;
        port->parked_done = port->typed_size = 0;
        if (port->listener.fd >= 0)
            device->watch(device, &port->listener, VIRTIO_UNWATCHED);
    }
}

/* 5.3.4: a character for emergencies, without any queue. */
static void console_config_written(struct virtio_device *device, uint32_t offset, uint32_t size) {
    struct virtio_console *console = (struct virtio_console *)device;
    uint32_t place = offsetof(struct virtio_console_config, emerg_wr);
    if (offset > place || size <= place - offset || !console->ports[0].terminal)
        return;
    terminal_write(console->ports[0].terminal, &device->config[place], 1);
    console->ports[0].to_host++;
}

/* Clients stay with the old guest: here the host has gone, as the guest will be told, and comes again. */
static void console_state(struct virtio_device *device, struct state *state) {
    struct virtio_console *console = (struct virtio_console *)device;
    if (!state_alike(state, &console->count, sizeof console->count))
        state_wrong(state, "its console has another number of ports");
    for (uint32_t i = 0; i < console->count && state_fine(state); i++) {
        struct console_port *port = &console->ports[i];
        if (!state_alike(state, port->name, sizeof port->name))
            state_wrong(state, "its console has another port in the place of %s", port->name[0] ? port->name : "none");
        STATE(state, port->owed);
        STATE(state, port->ready);
        STATE(state, port->guest_open);
        STATE(state, port->told_open);
        STATE(state, port->typed);
        STATE(state, port->typed_size);
        if (port->typed_size > sizeof port->typed) {
            state_wrong(state, "its console has more input than fits");
            port->typed_size = 0;
        }
        port->told_open = port->told_open != 0;
    }
}

static void console_close(struct virtio_device *device) {
    struct virtio_console *console = (struct virtio_console *)device;
    for (uint32_t i = 0; i < console->count; i++) {
        const struct console_port *port = &console->ports[i];
        if (port->client.fd >= 0)
            close(port->client.fd);
        if (port->listener.fd >= 0)
            close(port->listener.fd);
    }
    free(console);
}

static const struct virtio_ops console_ops = {
    .name = "console",
    .id = VIRTIO_ID_CONSOLE,
    .pci_class = 0x078000, /* other communication controller */
    .serve = console_serve,
    .config_written = console_config_written,
    .started = console_started,
    .stopped = console_stopped,
    .state = console_state,
    .close = console_close,
};

struct virtio_console *virtio_console_new(struct slot_rows *memory, uint32_t count) {
    if (!count || count > CONSOLE_PORTS)
        return NULL;
    struct virtio_console *console = calloc(1, sizeof *console);
    if (!console)
        return NULL;
    uint64_t features = 1ull << VIRTIO_CONSOLE_F_MULTIPORT | 1ull << VIRTIO_CONSOLE_F_EMERG_WRITE;
    if (virtio_init(&console->device, &console_ops, memory, features, sizeof(struct virtio_console_config),
                    2 * count + 2, QUEUE_SIZE)) {
        free(console->device.queues);
        free(console);
        return NULL;
    }
    console->count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct console_port *port = &console->ports[i];
        port->listener = (struct virtio_watch){.fd = -1, .ready = listener_ready, .device = &console->device};
        port->client = (struct virtio_watch){.fd = -1, .ready = client_ready, .device = &console->device};
    }
    struct virtio_console_config config = {.max_nr_ports = count};
    memcpy(console->device.config, &config, sizeof config);
    console->device.config_writable_from = offsetof(struct virtio_console_config, emerg_wr);
    console->device.config_writable_to = sizeof config;
    return console;
}

static struct console_port *new_port(struct virtio_console *console, uint32_t index, const char *name) {
    size_t length = strlen(name);
    if (index >= console->count || length >= CONSOLE_NAME || console->ports[index].exists)
        return NULL;
    struct console_port *port = &console->ports[index];
    memcpy(port->name, name, length);
    port->exists = 1;
    return port;
}

int virtio_console_port(struct virtio_console *console, uint32_t index, const char *name, int listener) {
    struct console_port *port = new_port(console, index, name);
    if (!port)
        return -EINVAL;
    port->listener.fd = listener;
    return 0;
}

int virtio_console_terminal(struct virtio_console *console, const char *name, struct terminal *terminal) {
    struct console_port *port = new_port(console, 0, name);
    if (!port)
        return -EINVAL;
    port->terminal = terminal;
    struct terminal_input input = {.device = console, .room = typed_room, .take = typed_take};
    return terminal_add_input(terminal, &input);
}
