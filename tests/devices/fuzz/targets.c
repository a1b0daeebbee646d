/* targets.c: see targets.h. */
#define _GNU_SOURCE
#include "targets.h"

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "balloon.h"
#include "blk.h"
#include "console.h"
#include "ivshmem.h"
#include "net_target.h"
#include "pmem.h"
#include "power.h"
#include "rng.h"
#include "serial.h"
#include "transport.h"

#define DATA 0x16000ull      /* buffers: the last pages of the second row */
#define FAR (1ull << 32)     /* and the row above 4 GiB */
#define OK(call) do { if ((call) < 0) { perror(#call); abort(); } } while (0)

static uint8_t content[DISK];
static int original = -1;    /* the disk that is never written */

uint64_t data_at(uint64_t size) {
    return below(2) ? DATA + below(0x2000 - size) : FAR + below(0x8000 - size);
}

static int new_disk(void) {
    int fd = memfd_create("disk", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, DISK))
        abort();
    return fd;
}

void targets_open(void) {
    for (uint32_t i = 0; i < DISK; i++)
        content[i] = (uint8_t)(i * 7 + i / 512);
    original = new_disk();
    if (pwrite(original, content, DISK, 0) != DISK)
        abort();
}

void add_virtio(struct bench *bench, void *device) {
    if (!device)
        abort();
    bench->device = device;
    int slot = virtio_pci_add(bench->machine, device, "target", 0);
    if (slot < 0)
        abort();
    bench->slot = (uint32_t)slot;
}

/* Posts, notifies, serves: 1 when the device used it. */
static int ask(struct bench *bench, uint32_t queue, const struct segment *segments, uint32_t count, uint32_t *size) {
    uint32_t ignored;
    uint16_t before = driver_used(&bench->driver, queue, &ignored);
    driver_post(&bench->driver, queue, segments, count, 0);
    driver_notify(&bench->driver, queue);
    serve(bench->machine);
    return driver_used(&bench->driver, queue, size) == (uint16_t)(before + 1);
}

/* --- blk --- */

static void make_blk(struct bench *bench, enum blk_access access) {
    bench->disk = access == BLK_SHARED ? new_disk() : -1;
    int fd = dup(access == BLK_SHARED ? bench->disk : original);
    add_virtio(bench, virtio_blk_new(&guest_rows, fd, DISK, access, access == BLK_PRIVATE ? new_disk() : -1, "serial", 512));
}

static void make_blk_ro(struct bench *bench) {
    make_blk(bench, BLK_READ_ONLY);
}

static void make_blk_shared(struct bench *bench) {
    make_blk(bench, BLK_SHARED);
}

static void make_blk_private(struct bench *bench) {
    make_blk(bench, BLK_PRIVATE);
}

static uint32_t request_blk(struct bench *bench, struct segment *segments, uint32_t *queue) {
    (void)bench;
    static const uint32_t types[] = {VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
                                     VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES};
    uint64_t at = data_at(64);
    struct virtio_blk_outhdr header = {.type = types[below(6)], .sector = below(DISK / 512)};
    if (!below(8))
        header.type = (uint32_t)nasty(16);
    if (!below(4))
        header.sector = nasty(DISK / 512);
    poke(at, &header, sizeof header);
    uint32_t count = 0;
    *queue = 0;
    segments[count++] = (struct segment){at, sizeof header, 0};
    int write = header.type == VIRTIO_BLK_T_IN || header.type == VIRTIO_BLK_T_GET_ID;
    if (header.type == VIRTIO_BLK_T_DISCARD || header.type == VIRTIO_BLK_T_WRITE_ZEROES) {
        struct virtio_blk_discard_write_zeroes what = {below(DISK / 512), (uint32_t)below(16), (uint32_t)below(3)};
        if (!below(4))
            what.sector = nasty(DISK / 512), what.num_sectors = (uint32_t)nasty(DISK / 512);
        uint64_t place = data_at(16);
        poke(place, &what, sizeof what);
        segments[count++] = (struct segment){place, 16, 0};
    } else if (header.type != VIRTIO_BLK_T_FLUSH) {
        for (uint64_t parts = 1 + below(4); parts--;)
            segments[count++] = (struct segment){data_at(2048), 512 * (uint32_t)(1 + below(4)), write};
    }
    segments[count++] = (struct segment){data_at(1), 1, 1};
    return count;
}

static void host_blk(struct bench *bench) {
    if (bench->disk >= 0 && ftruncate(bench->disk, below(2) ? DISK : (off_t)below(DISK)))
        abort();
}

static int blk_once(struct bench *bench, uint32_t type, uint64_t sector) {
    struct virtio_blk_outhdr header = {.type = type, .sector = sector};
    uint32_t size;
    uint8_t status = 0x55;
    poke(FAR, &header, sizeof header);
    poke(FAR + 0x7000, &status, 1);
    struct segment segments[] = {{FAR, 16, 0}, {FAR + 0x1000, 512, type == VIRTIO_BLK_T_IN}, {FAR + 0x7000, 1, 1}};
    if (!ask(bench, 0, segments, 3, &size))
        return -1;
    peek(FAR + 0x7000, &status, 1);
    return status;
}

static int prove_blk(struct bench *bench) {
    struct virtio_blk *blk = bench->device;
    uint8_t out[512], in[512];
    if (bench->disk >= 0 && ftruncate(bench->disk, DISK))
        abort();
    uint64_t sector = below(DISK / 512);
    memset(out, 0xa5, sizeof out);
    poke(FAR + 0x1000, out, sizeof out);
    int written = blk_once(bench, VIRTIO_BLK_T_OUT, sector);
    if (written != (blk->access == BLK_READ_ONLY ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK))
        return 0;
    memset(in, 0, sizeof in);
    poke(FAR + 0x1000, in, sizeof in);
    if (blk_once(bench, VIRTIO_BLK_T_IN, sector) != VIRTIO_BLK_S_OK)
        return 0;
    peek(FAR + 0x1000, in, sizeof in);
    return !memcmp(in, blk->access == BLK_READ_ONLY ? content + sector * 512 : out, sizeof in);
}

/* --- rng --- */

static void make_rng(struct bench *bench) {
    add_virtio(bench, virtio_rng_new(&guest_rows));
}

static uint32_t request_in(struct bench *bench, struct segment *segments, uint32_t *queue) {
    (void)bench;
    *queue = 0;
    uint32_t count = 1 + (uint32_t)below(3);
    for (uint32_t i = 0; i < count; i++)
        segments[i] = (struct segment){data_at(4096), (uint32_t)below(4096), 1};
    return count;
}

static int prove_rng(struct bench *bench) {
    for (uint32_t turn = 1; turn <= 2 * bench->driver.queues[0].size + 1u; turn++) {
        struct segment segment = {FAR + 0x1000, turn, 1};
        uint32_t size = 0;
        if (!ask(bench, 0, &segment, 1, &size) || size != turn)
            return 0;
    }
    return 1;
}

/* --- pmem --- */

static void make_pmem(struct bench *bench) {
    bench->disk = new_disk();
    add_virtio(bench, virtio_pmem_new(&guest_rows, dup(bench->disk), FAR, 0x8000));
}

static uint32_t request_pmem(struct bench *bench, struct segment *segments, uint32_t *queue) {
    (void)bench;
    *queue = 0;
    uint32_t type = below(4) ? 0 : (uint32_t)random_next();
    segments[0] = (struct segment){data_at(4), 4, 0};
    segments[1] = (struct segment){data_at(4), 4, 1};
    poke(segments[0].gpa, &type, 4);
    return 2;
}

static int prove_pmem(struct bench *bench) {
    struct segment segments[] = {{FAR, 4, 0}, {FAR + 16, 4, 1}};
    uint32_t words[5] = {0, 0, 0, 0, 1}, size = 0;
    poke(FAR, words, sizeof words);
    if (!ask(bench, 0, segments, 2, &size))
        return 0;
    peek(FAR, words, sizeof words);
    return size == 4 && words[4] == 0;
}

/* --- balloon --- */

static void make_balloon(struct bench *bench) {
    struct virtio_balloon *balloon = virtio_balloon_new(&guest_rows, (int)below(2));
    if (balloon)
        virtio_balloon_allow(balloon, (uintptr_t)slot_hva(&guest_rows, FAR, 0x8000, 1), 0x8000, MADV_DONTNEED);
    add_virtio(bench, balloon);
}

static uint32_t request_balloon(struct bench *bench, struct segment *segments, uint32_t *queue) {
    (void)bench;
    *queue = (uint32_t)below(5);
    if (*queue > 2) {
        uint32_t count = 1 + (uint32_t)below(4);
        for (uint32_t i = 0; i < count; i++)
            segments[i] = (struct segment){FAR + below(8) * 4096, 4096, 1};
        return count;
    }
    uint32_t pages[64];
    for (int i = 0; i < 64; i++)
        pages[i] = below(4) ? (1u << 20) + (uint32_t)below(8) : (uint32_t)nasty(1 << 20);
    uint64_t at = DATA + below(0x1000);
    poke(at, pages, sizeof pages);
    segments[0] = (struct segment){at, (uint32_t)below(sizeof pages + 1), 0};
    return 1;
}

static void host_balloon(struct bench *bench) {
    uint64_t statistics[BALLOON_STATISTICS];
    virtio_balloon_target(bench->device, (uint32_t)nasty(1024));
    virtio_balloon_poll(bench->device);
    virtio_balloon_statistics(bench->device, statistics);
    virtio_balloon_actual(bench->device);
}

static int prove_balloon(struct bench *bench) {
    struct virtio_balloon *balloon = bench->device;
    uint64_t before = balloon->released;
    if (virtio_balloon_poll(balloon)) /* A buffer of the driver before. */
        return 0;
    uint32_t page = 1u << 20, size = 0, word = 0x12345678;
    poke(FAR, &word, 4);
    poke(DATA, &page, 4);
    struct segment segment = {DATA, 4, 0};
    if (!ask(bench, 0, &segment, 1, &size))
        return 0;
    peek(FAR, &word, 4);
    return balloon->released == before + 4096 && word == 0;
}

/* --- console --- */

/* Returns a socket connected to that name, or -1: its backlog is full. */
static int connected(const struct sockaddr_un *name, socklen_t length) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    OK(fd);
    if (connect(fd, (const struct sockaddr *)name, length)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void connect_client(struct bench *bench, uint32_t i) {
    struct sockaddr_un name;
    socklen_t length = sizeof name;
    OK(getsockname(bench->listeners[i], (struct sockaddr *)&name, &length));
    bench->clients[i] = connected(&name, length);
}

/* A client does something: sends, reads, ends one direction, goes. */
static void act(int *client) {
    uint8_t bytes[9000];
    memset(bytes, 'h', sizeof bytes);
    switch (below(7)) {
    case 0:
    case 1:
    case 2:
        (void)!send(*client, bytes, below(sizeof bytes), MSG_NOSIGNAL);
        return;
    case 3:
    case 4:
        (void)!recv(*client, bytes, below(sizeof bytes), 0);
        return;
    case 5:
        shutdown(*client, (int)below(2));
        return;
    default:
        close(*client);
        *client = -1;
    }
}

static void make_console(struct bench *bench) {
    struct virtio_console *console = virtio_console_new(&guest_rows, 1 + CONSOLE_SOCKETS);
    if (!console || virtio_console_terminal(console, "console", &bench->terminal))
        abort();
    for (uint32_t i = 0; i < CONSOLE_SOCKETS; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        struct sockaddr_un any = {.sun_family = AF_UNIX}; /* The kernel finds a name. */
        OK(bind(fd, (struct sockaddr *)&any, sizeof any.sun_family));
        OK(listen(fd, 2));
        OK(bench->listeners[i] = dup(fd));
        OK(virtio_console_port(console, i + 1, i ? "second" : "first", fd));
    }
    add_virtio(bench, console);
}

/* Gives the device as many buffers for control messages as it wants. */
static void feed(struct bench *bench) {
    struct driver_queue *queue = &bench->driver.queues[2];
    uint32_t size;
    for (int i = 0; i < 12; i++) {
        struct segment buffer = {FAR + 0x1000 + 64u * (unsigned)i, 64, 1};
        if ((uint16_t)(queue->next_avail - driver_used(&bench->driver, 2, &size)) < queue->size)
            driver_post(&bench->driver, 2, &buffer, 1, 0);
        driver_notify(&bench->driver, 2);
        serve(bench->machine);
    }
}

static void control(struct bench *bench, uint32_t id, uint16_t event) {
    struct virtio_console_control message = {.id = id, .event = event, .value = 1};
    struct segment segment = {FAR, 8, 0};
    uint32_t size;
    poke(FAR, &message, sizeof message);
    ask(bench, 3, &segment, 1, &size);
    feed(bench);
}

static uint32_t request_console(struct bench *bench, struct segment *segments, uint32_t *queue) {
    uint32_t which = (uint32_t)below(4);
    if (which == 0) { /* A control message. */
        struct virtio_console_control message = {.id = (uint32_t)below(4), .event = (uint16_t)below(8), .value = below(4) != 0};
        static const uint16_t useful[] = {VIRTIO_CONSOLE_DEVICE_READY, VIRTIO_CONSOLE_PORT_READY, VIRTIO_CONSOLE_PORT_OPEN};
        if (below(4))
            message.event = useful[below(3)];
        segments[0] = (struct segment){data_at(8), 8, 0};
        poke(segments[0].gpa, &message, sizeof message);
        *queue = 3;
        return 1;
    }
    *queue = which == 1 ? 2 : (uint32_t)below(bench->driver.count ? bench->driver.count : 1);
    int in = *queue % 2 == 0;
    if (!in && *queue > 3 && below(2)) { /* More than a socket holds, soon. */
        for (uint32_t i = 0; i < SEGMENTS; i++)
            segments[i] = (struct segment){FAR, 0x8000, 0};
        return SEGMENTS;
    }
    segments[0] = (struct segment){data_at(512), (uint32_t)(in ? 64 + below(448) : below(512)), in};
    return 1;
}

static void host_console(struct bench *bench) {
    uint32_t i = (uint32_t)below(CONSOLE_SOCKETS);
    if (bench->clients[i] < 0)
        connect_client(bench, i);
    else
        act(&bench->clients[i]);
}

/* Both ports as far as a guest's programs bring them, with buffers and a client each, sometimes. */
static void warm_console(struct bench *bench) {
    control(bench, 0, VIRTIO_CONSOLE_DEVICE_READY);
    for (uint32_t port = 0; port <= CONSOLE_SOCKETS; port++) {
        if (below(8))
            control(bench, port, VIRTIO_CONSOLE_PORT_READY);
        if (below(8))
            control(bench, port, VIRTIO_CONSOLE_PORT_OPEN);
        for (uint64_t buffers = below(4); buffers--;) {
            struct segment buffer = {data_at(512), 1 + (uint32_t)below(511), 1};
            driver_post(&bench->driver, port ? 2 * port + 2 : 0, &buffer, 1, 0);
        }
        if (port && below(4))
            connect_client(bench, port - 1);
    }
    serve(bench->machine);
}

static void forget_clients(struct bench *bench) {
    for (uint32_t i = 0; i < CONSOLE_SOCKETS; i++) {
        if (bench->clients[i] >= 0)
            close(bench->clients[i]);
        bench->clients[i] = -1;
        for (int fd; (fd = accept(bench->listeners[i], NULL, NULL)) >= 0;)
            close(fd);
    }
}

/* The guest's bytes reach a client, the client's the guest. */
static int prove_console(struct bench *bench) {
    uint32_t size = 0;
    char got[8] = {0};
    forget_clients(bench);
    control(bench, 0, VIRTIO_CONSOLE_DEVICE_READY);
    control(bench, 1, VIRTIO_CONSOLE_PORT_READY);
    control(bench, 1, VIRTIO_CONSOLE_PORT_OPEN);
    connect_client(bench, 0);
    serve(bench->machine);
    feed(bench);
    struct segment out = {FAR, 5, 0}, in = {FAR + 64, 64, 1};
    poke(FAR, "hello", 5);
    if (bench->clients[0] < 0 || !ask(bench, 5, &out, 1, &size) || recv(bench->clients[0], got, 8, 0) != 5)
        return 0;
    if (memcmp(got, "hello", 5) || send(bench->clients[0], "there", 5, MSG_NOSIGNAL) != 5)
        return 0;
    if (!ask(bench, 4, &in, 1, &size) || size != 5)
        return 0;
    peek(FAR + 64, got, 5);
    return !memcmp(got, "there", 5);
}

/* --- ivshmem: no queues; registers and eventfds --- */

static void make_ivshmem(struct bench *bench) {
    for (int i = 0; i < IVSHMEM_EVENTS; i++)
        OK(bench->events[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    struct ivshmem_peer peers[] = {{0, 0, bench->events[1]}, {2, 1, bench->events[2]}};
    struct ivshmem_config config = {
        .name = "region", .size = 0x8000, .position = 1, .vectors = bench->events, .vector_count = 1,
        .bells = bench->events + 1, .bell_count = 1, .peers = peers, .peer_count = 2,
    };
    int slot = ivshmem_add(bench->machine, &config);
    if (slot < 0)
        abort();
    bench->slot = (uint32_t)slot;
}

static void warm_ivshmem(struct bench *bench) {
    config_put(bench->machine, bench->slot, 4, 6, 2);
    if (below(2))
        enable_msix(bench->machine, bench->slot, 1);
    uint64_t registers = config_get(bench->machine, bench->slot, 0x10, 4) & ~0xfull;
    mmio_put(bench->machine, registers, 1, 4); /* Interrupt mask. */
}

static void host_ivshmem(struct bench *bench) {
    uint64_t one = 1;
    (void)!write(bench->events[below(IVSHMEM_EVENTS)], &one, sizeof one);
    struct machine_move move;
    if (below(2) && machine_moves(bench->machine, &move, 1))
        machine_moved(bench->machine, move.slot, move.bar, move.to);
}

const struct target targets[] = {
    {"blk-ro", 1, make_blk_ro, NULL, request_blk, host_blk, prove_blk},
    {"blk-shared", 1, make_blk_shared, NULL, request_blk, host_blk, prove_blk},
    {"blk-private", 1, make_blk_private, NULL, request_blk, host_blk, prove_blk},
    {"rng", 1, make_rng, NULL, request_in, NULL, prove_rng},
    {"pmem", 1, make_pmem, NULL, request_pmem, NULL, prove_pmem},
    {"balloon", 1, make_balloon, NULL, request_balloon, host_balloon, prove_balloon},
    {"console", 1, make_console, warm_console, request_console, host_console, prove_console},
    {"ivshmem", 0, make_ivshmem, warm_ivshmem, NULL, host_ivshmem, NULL},
    {"net", 1, make_net, NULL, request_net, host_net, prove_net},
};
const uint32_t target_count = sizeof targets / sizeof *targets;

void terminal_host(struct bench *bench) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    memcpy(name.sun_path, bench->socket, sizeof bench->socket);
    if (bench->watcher < 0)
        bench->watcher = connected(&name, sizeof name);
    else
        act(&bench->watcher);
}

struct bench *bench_open(const struct target *target) {
    static const struct pci_place place = {
        .ecam = ECAM, .config_port = 0xcf8, .low_start = LOW_START, .low_end = LOW_END, .high_start = HIGH_START,
        .high_end = HIGH_END, .first_gsi = 16, .gsis = 8,
    };
    struct bench *bench = calloc(1, sizeof *bench);
    bench->target = target;
    bench->disk = -1;
    for (int i = 0; i < CONSOLE_SOCKETS; i++)
        bench->listeners[i] = bench->clients[i] = -1;
    for (int i = 0; i < IVSHMEM_EVENTS; i++)
        bench->events[i] = -1;
    bench->machine = machine_new(&guest_rows, -1, &place);
    if (!bench->machine)
        abort();
    bench->watcher = -1;
    OK(bench->log = memfd_create("log", MFD_CLOEXEC));
    snprintf(bench->socket, sizeof bench->socket, "/tmp/device-fuzz.%d", getpid());
    OK(terminal_open(&bench->terminal, &bench->machine->loop, bench->log, NULL, 0, bench->socket));
    OK(serial_add(bench->machine, 0x3f8, 4, &bench->terminal));
    OK(power_add(bench->machine, 0x600, 5, 1));
    target->make(bench);
    OK(pci_start(&bench->machine->pci)); /* All but the thread. */
    return bench;
}

static void close_all(const int *fds, int count) {
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

void bench_close(struct bench *bench) {
    static uint8_t now[DISK];
    if (bench->target->make == make_blk_ro || bench->target->make == make_blk_private) {
        if (pread(original, now, DISK, 0) != DISK || memcmp(now, content, DISK)) {
            fputs("a disk that may not be written was written\n", stderr);
            abort();
        }
    }
    terminal_close(&bench->terminal);
    machine_free(bench->machine);
    close_all(&bench->disk, 1);
    close_all(&bench->log, 1);
    close_all(&bench->watcher, 1);
    close_all(bench->listeners, CONSOLE_SOCKETS);
    close_all(bench->clients, CONSOLE_SOCKETS);
    close_all(bench->events, IVSHMEM_EVENTS);
    if (bench->target->make == make_net)
        peer_close();
    free(bench);
}
