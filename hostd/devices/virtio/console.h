/*
 * console.h: the console device (virtio 1.2, 5.3) with several ports, each of them a Unix stream socket on the host.
 *
 * A named port has one client at a time: who connects while there is one waits in the socket's backlog. The guest is told
 * when a client comes and goes, the client sees the end when the guest closes. Nothing is dropped while both ends are open:
 * who reads slowly stops the other (by an unread socket, by an unused buffer). Port 0 can be the guest's console (hvc0), whose
 * far end is a terminal: it never waits for anyone, because Linux spins until a console's byte is taken.
 */
#ifndef HOSTD_VIRTIO_CONSOLE_H
#define HOSTD_VIRTIO_CONSOLE_H

#include "device.h"
#include "terminal.h"

#define CONSOLE_PORTS 16
#define CONSOLE_NAME 32   /* bytes of the longest name, and one */
#define CONSOLE_TYPED 256 /* bytes that wait for the guest to read; more wait in the terminal */

struct console_port {
    struct virtio_watch listener, client;
    struct terminal *terminal; /* a console's far end, instead of a socket; NULL: no console */
    uint8_t typed[CONSOLE_TYPED]; /* for the console, until the guest has a buffer */
    uint32_t typed_size;
    char name[CONSOLE_NAME];
    uint8_t exists;
    uint8_t owed;           /* control messages that the guest has not been sent yet */
    uint8_t ready;          /* the guest has made the port */
    uint8_t guest_open, told_open;
    uint8_t ended;          /* the client sends no more */
    uint8_t hung;           /* the client is gone, but bytes of it are unread */
    uint8_t no_room;        /* the guest has no buffer for input */
    uint8_t parked;         /* output waits for the client to read */
    uint8_t closing;        /* the guest has closed: the client goes once it was sent `closing_left` chains */
    uint16_t closing_left;
    uint64_t parked_done;   /* bytes of the first waiting chain that the client has */
    uint64_t to_guest, to_host, dropped, clients; /* counters: bytes; dropped: nobody was there to read */
};

struct virtio_console {
    struct virtio_device device;
    uint32_t count;
    struct console_port ports[CONSOLE_PORTS];
};

/*
 * A console device for ports 0 to `count` - 1, none of which is there before virtio_console_port. NULL where the host
 * lacks memory or `count` is not 1 to CONSOLE_PORTS.
 */
struct virtio_console *virtio_console_new(struct slot_rows *memory, uint32_t count);

/*
 * Make port `index`, before the guest runs: a socket's, `listener` being a listening, non-blocking Unix stream socket that
 * becomes the device's. 0 or -EINVAL.
 */
int virtio_console_port(struct virtio_console *console, uint32_t index, const char *name, int listener);

/* Make port 0 the guest's console, on a terminal that outlives the device. 0 or -EINVAL. */
int virtio_console_terminal(struct virtio_console *console, const char *name, struct terminal *terminal);

#endif
