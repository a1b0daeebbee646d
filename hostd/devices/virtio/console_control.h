/* console_control.h: the control messages of the console device (virtio 1.2, 5.3.6.2), and what its files share. */
#ifndef HOSTD_VIRTIO_CONSOLE_CONTROL_H
#define HOSTD_VIRTIO_CONSOLE_CONTROL_H

#include "console.h"

/* 5.3.2: port 0 has queues 0 and 1, the control messages 2 and 3, port N 2N + 2 and 2N + 3. */
enum { CONTROL_IN = 2, CONTROL_OUT = 3 };

static inline uint32_t console_input_of(uint32_t port) {
    return port ? 2 * port + 2 : 0;
}

static inline uint32_t console_port_of(uint32_t queue) {
    return queue < 2 ? 0 : queue / 2 - 1;
}

/* All under the lock and slot_lock, the device live. 0 or -error. */

/* Take what the guest said. */
int console_hear(struct virtio_console *console);

/* Send what the guest has not been told, as far as it has buffers. */
int console_tell(struct virtio_console *console);

/* Send the guest's output on. */
int console_serve_output(struct virtio_console *console, struct console_port *port, uint32_t queue);

/* Wait for what matters now. Under the lock. */
void console_update(struct virtio_console *console, struct console_port *port);

/* The client is gone, or has to. Under the lock. */
void console_drop_client(struct virtio_console *console, struct console_port *port);

#endif
