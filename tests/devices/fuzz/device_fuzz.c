/*
 * device_fuzz.c: random bytes over configuration space, BARs, ports, queues and descriptors of every device, without a VM.
 *
 *     device_fuzz SEED CASES [FIRST]     cases FIRST.. of the seed; each can be run again alone
 *     device_fuzz SEED CASES race        another vCPU writes to the rings and buffers all the time: not repeatable
 *
 * Built with -fsanitize=address,undefined; the guest's rows lie between pages without access. A case sets a device up as a
 * driver does, mostly, then goes wrong step by step; in the end the device is reset and has to do its work. A case that does
 * not come to an end is met by the alarm.
 */
#include <fcntl.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "targets.h"
#include "transport.h"

enum { STEPS = 24, SECONDS = 20 };

static uint64_t broken, used, proven; /* so that a fuzzer that reaches nothing is seen */
static uint64_t seed, number;
static const char *doing = "";
static int race;

static void too_long(int signal) {
    (void)signal;
    char line[160];
    int size = snprintf(line, sizeof line, "case %lu of seed %lu (%s) does not come to an end\n", number, seed, doing);
    (void)!write(2, line, (size_t)size);
    _exit(3);
}

static uint32_t access_size(void) {
    return 1u << below(4);
}

/* A request, perhaps with something wrong. */
static void request(struct bench *bench) {
    struct segment segments[SEGMENTS];
    uint32_t queue;
    uint32_t count = bench->target->request(bench, segments, &queue);
    if (queue >= bench->driver.count)
        return;
    for (uint64_t times = below(4) ? 0 : 1 + below(3); times--;) {
        struct segment *segment = &segments[below(count)];
        switch (below(5)) {
        case 0:
            segment->gpa = some_address();
            break;
        case 1:
            segment->size = (uint32_t)nasty(segment->size);
            break;
        case 2:
            segment->write = !segment->write;
            break;
        case 3:
            if (count < SEGMENTS)
                segments[count] = segments[below(count)], count++;
            break;
        default:
            count -= count > 1;
        }
    }
    driver_post(&bench->driver, queue, segments, count, !below(3));
    if (below(8))
        driver_notify(&bench->driver, queue);
}

/* The guest writes where the rings are: a descriptor, an index, a flag, any byte. */
static void scribble(struct bench *bench) {
    if (!bench->driver.count)
        return;
    const struct driver_queue *queue = &bench->driver.queues[below(bench->driver.count)];
    uint64_t value = nasty(queue->size);
    uint64_t desc = queue->desc + 16 * below(queue->size);
    switch (below(7)) {
    case 6: { /* A loop, of buffers of nothing, or of many pieces. */
        static const struct vring_desc kinds[] = {{BORDER, 16, VRING_DESC_F_NEXT, 0}, {BORDER, 0, VRING_DESC_F_NEXT, 0}};
        struct vring_desc loop = kinds[below(2)];
        loop.flags |= below(2) ? VRING_DESC_F_WRITE : 0;
        for (uint16_t i = 0; i < queue->size; i++) {
            loop.next = (uint16_t)((i + 1) & (queue->size - 1));
            poke(queue->desc + 16ull * i, &loop, sizeof loop);
        }
        poke(queue->avail + 4 + 2ull * (queue->next_avail & (queue->size - 1u)), &(uint16_t){0}, 2);
        poke(queue->avail + 2, &(uint16_t){(uint16_t)(queue->next_avail + 1)}, 2);
        break;
    }
    case 0:
        value = some_address();
        poke(desc, &value, 8);
        break;
    case 1:
        poke(desc + 8, &value, 4);
        break;
    case 2:
        value &= 7;
        poke(desc + 12, &value, 2);
        break;
    case 3:
        poke(desc + 14, &value, 2);
        break;
    case 4:
        poke(queue->avail + 2 * below(queue->size + 3u), &value, 2);
        break;
    default:
        poke(some_address(), &value, 1 + below(8));
    }
    if (below(2))
        driver_notify(&bench->driver, (uint32_t)below(bench->driver.count));
}

static void touch_config(struct bench *bench) {
    struct machine *machine = bench->machine;
    uint32_t slot = below(4) ? bench->slot : (uint32_t)below(4), size = access_size();
    uint32_t offset = below(4) ? (uint32_t)below(256) : (uint32_t)nasty(4096) & 0xfff;
    switch (below(4)) {
    case 0:
        mmio_get(machine, ECAM + (slot << 15) + offset, size);
        break;
    case 1:
        mmio_put(machine, ECAM + (slot << 15) + offset, nasty(below(2) ? 0x40 : 0xe0000000), size);
        break;
    default:
        port_put(machine, 0xcf8, 0x80000000u | slot << 11 | (offset & 0xfc), 4);
        if (below(2))
            port_put(machine, (uint16_t)(0xcfc + below(4)), (uint32_t)nasty(0x40), 1u << below(3));
        else
            port_get(machine, (uint16_t)(0xcfc + below(4)), 1u << below(3));
    }
}

/* The window in configuration space: any BAR, offset and length, then its data. */
static void touch_window(struct bench *bench) {
    struct machine *machine = bench->machine;
    uint32_t at = config_get(machine, bench->slot, 0x34, 1);
    for (int i = 0; at && i < 20; i++, at = config_get(machine, bench->slot, at + 1, 1)) {
        if (config_get(machine, bench->slot, at, 1) != 9 || config_get(machine, bench->slot, at + 3, 1) != VIRTIO_PCI_CAP_PCI_CFG)
            continue;
        config_put(machine, bench->slot, at + 4, below(4) ? (uint32_t)below(2) : (uint32_t)nasty(6), 1);
        config_put(machine, bench->slot, at + 8, below(2) ? (uint32_t)below(4) << 12 | (uint32_t)below(64) : (uint32_t)nasty(0x4000), 4);
        config_put(machine, bench->slot, at + 12, below(4) ? 1u << below(3) : (uint32_t)nasty(4), 4);
        if (below(2))
            config_put(machine, bench->slot, at + 16, (uint32_t)nasty(0x40), 4);
        else
            config_get(machine, bench->slot, at + 16, 4);
        return;
    }
}

static void touch_bar(struct bench *bench) {
    struct machine *machine = bench->machine;
    uint32_t which = (uint32_t)below(2), size = access_size();
    uint64_t bar = config_get(machine, bench->slot, 0x10 + 4 * which, 4) & ~0xfull;
    uint64_t offset = below(4) ? (below(4) << 12) + below(80) : nasty(0x4000);
    if (below(2))
        mmio_get(machine, bar + offset, size);
    else
        mmio_put(machine, bar + offset, below(2) ? nasty(0x40) : below(0x20), size);
}

/* One field of the common configuration, as a driver would write it, with any value. */
static void touch_common(struct bench *bench) {
    static const uint8_t fields[][2] = {{0, 4}, {4, 4}, {8, 4}, {12, 4}, {16, 2}, {18, 2}, {20, 1}, {21, 1}, {22, 2}, {24, 2},
                                        {26, 2}, {28, 2}, {30, 2}, {32, 4}, {36, 4}, {40, 8}, {48, 4}, {52, 4}, {56, 4}};
    const uint8_t *field = fields[below(sizeof fields / sizeof *fields)];
    uint64_t value = field[0] >= 32 ? some_address() : field[0] == 20 ? below(256) : nasty(bench->driver.count);
    mmio_put(bench->machine, bench->driver.bar + field[0], value, field[1]);
    mmio_get(bench->machine, bench->driver.bar + field[0], field[1]);
}

static void touch_ports(struct bench *bench) {
    static const uint16_t bases[] = {0x3f8, 0x3f8, 0x600, 0};
    uint16_t port = (uint16_t)(bases[below(4)] + below(9));
    if (below(2))
        port_put(bench->machine, port, (uint32_t)nasty(0x40), 1u << below(3));
    else
        port_get(bench->machine, port, 1u << below(3));
}

static void step(struct bench *bench) {
    switch (below(16)) {
    case 0:
        touch_config(bench);
        break;
    case 1:
        touch_bar(bench);
        break;
    case 2:
        touch_ports(bench);
        break;
    case 3:
        if (bench->target->virtio)
            touch_window(bench);
        break;
    case 4:
        touch_common(bench);
        break;
    case 5:
    case 6:
    case 7:
        scribble(bench);
        break;
    case 8:
    case 9:
        if (bench->target->host)
            bench->target->host(bench);
        break;
    case 11:
        if (!below(8))
            pci_reset(&bench->machine->pci);
        else
            terminal_host(bench);
        break;
    case 10:
        serve(bench->machine);
        if (bench->target->virtio && !below(16)) /* In mid flight, another driver. */
            bench->ready = driver_open(&bench->driver, bench->machine, bench->slot, ~0ull, (int)below(2));
        break;
    default:
        if (bench->target->request && bench->ready)
            request(bench);
        else
            touch_bar(bench);
    }
    if (below(2))
        loop_once(&bench->machine->loop, 0);
}

/* Not a data race to the machine, whatever the language says: this is what a guest's other vCPU can do. */
static void *other_vcpu(void *stop) {
    uint64_t state = seed + number + 1;
    while (!__atomic_load_n((int *)stop, __ATOMIC_ACQUIRE)) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint64_t value = state >> 40, gpa = 0x100 + state % 0x6000;
        const struct slot_row *row = slot_find(&guest_rows, gpa);
        if (state >> 32 & 1) /* Something that may be believed: a small number, a flag. */
            __atomic_store_n((uint16_t *)(row->hva + (gpa & ~1ull)), (uint16_t)(value & 0x1f), __ATOMIC_RELAXED);
        else
            __atomic_store_n((uint32_t *)(row->hva + (gpa & ~3ull)), (uint32_t)value, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void one_case(void) {
    random_seed(seed, number);
    memory_clear();
    const struct target *target = &targets[below(target_count)];
    doing = target->name;
    struct bench *bench = bench_open(target);
    if (target->virtio && below(8))
        bench->ready = driver_open(&bench->driver, bench->machine, bench->slot, below(2) ? ~0ull : random_next(), (int)below(2));
    else
        config_put(bench->machine, bench->slot, 4, 6, 2);
    if (target->warm && (bench->ready || !target->virtio) && below(4))
        target->warm(bench);
    int stop = 0;
    pthread_t thread;
    if (race && pthread_create(&thread, NULL, other_vcpu, &stop))
        abort();
    for (uint64_t steps = (1 + below(STEPS)) * (race ? 8 : 1); steps--;)
        step(bench);
    serve(bench->machine);
    if (race) {
        __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
        pthread_join(thread, NULL);
    }
    struct virtio_device *device = virtio_pci_device(bench->machine, bench->slot);
    for (uint32_t i = 0; device && i < device->queue_count; i++)
        used += device->queues[i].chains;
    if (device)
        broken += device->breaks;
    if (target->prove && !below(2)) {
        /* Its BARs may be anywhere, even nowhere: a driver's system would set them again. */
        config_put(bench->machine, bench->slot, 0x10, LOW_START + 0x1000000, 4);
        config_put(bench->machine, bench->slot, 0x14, LOW_START + 0x1010000, 4);
        memory_clear();
        if (!driver_open(&bench->driver, bench->machine, bench->slot, ~0ull, 0) || !target->prove(bench)) {
            fprintf(stderr, "case %lu of seed %lu: %s does not work after a reset\n", number, seed, target->name);
            abort();
        }
        proven++;
    }
    bench_close(bench);
}

static int open_descriptors(void) {
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    seed = strtoull(argv[1], NULL, 10);
    race = argc > 3 && !strcmp(argv[3], "race");
    uint64_t cases = strtoull(argv[2], NULL, 10), first = argc > 3 && !race ? strtoull(argv[3], NULL, 10) : 0;
    memory_open();
    targets_open();
    signal(SIGALRM, too_long);
    signal(SIGPIPE, SIG_DFL); /* Who writes to a socket that is gone must not raise it. */
    int before = open_descriptors();
    for (number = first; number < first + cases; number++) {
        alarm(SECONDS);
        one_case();
    }
    if (open_descriptors() != before) {
        fprintf(stderr, "%d descriptors were left open\n", open_descriptors() - before);
        return 4;
    }
    printf("%lu cases, %lu chains used, %lu devices broken, %lu proven\n", cases, used, broken, proven);
    return 0;
}
