/* pci.c: configuration space, the two ways to it, and INTx. See pci.h; BARs are in bars.c. */
#include "pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "state.h"

/* The registers of the header (PCI Local Bus 3.0, 6.1). */
enum {
    VENDOR = 0x00, DEVICE = 0x02, COMMAND = 0x04, STATUS = 0x06, REVISION = 0x08, CLASS = 0x09, CACHE_LINE = 0x0c,
    BARS = 0x10, BARS_END = 0x28, SUBSYSTEM_VENDOR = 0x2c, SUBSYSTEM = 0x2e, CAPABILITIES = 0x34, LINE = 0x3c,
    PIN = 0x3d,
    FIRST_CAPABILITY = 0x40,
};
enum { STATUS_INTX = 0x08, STATUS_CAPABILITIES = 0x10, STATUS_ERRORS = 0xf900 };
enum { COMMAND_PARITY = 0x40, COMMAND_SERR = 0x100 };
enum { ECAM_SIZE = 1 << 20, ECAM_DEVICE = 1 << 12 };

/* --- interrupt lines --- */

void pci_line(struct pci_device *device) {
    struct pci *pci = device->pci;
    uint32_t index = device->slot % pci->gsis, bit = 1u << device->slot;
    pthread_mutex_lock(&pci->line_lock);
    /* What a write to COMMAND changes behind this read, it settles itself, in here. */
    int disabled = __atomic_load_n(&device->config[COMMAND + 1], __ATOMIC_ACQUIRE) & PCI_COMMAND_NO_INTX >> 8;
    int asserted = device->line && !disabled && !msix_enabled(device);
    uint32_t before = pci->lines[index];
    pci->lines[index] = asserted ? before | bit : before & ~bit;
    if (!before != !pci->lines[index])
        interrupts_line(&pci->machine->interrupts, pci->first_gsi + index, pci->lines[index] != 0);
    pthread_mutex_unlock(&pci->line_lock);
}

void pci_intx(struct pci_device *device, int level) {
    pthread_mutex_lock(&device->pci->line_lock);
    __atomic_store_n(&device->line, level != 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&device->pci->line_lock);
    pci_line(device);
}

int pci_master(const struct pci_device *device) {
    return (__atomic_load_n(&device->config[COMMAND], __ATOMIC_RELAXED) & PCI_COMMAND_MASTER) != 0;
}

/* --- configuration space; under pci.lock --- */

static uint64_t config_read(struct pci_device *device, uint32_t offset, uint32_t size) {
    uint64_t value = 0;
    if (device->ops->config_read)
        device->ops->config_read(device, offset, size);
    for (uint32_t i = 0; i < size && offset + i < PCI_CONFIG_SIZE; i++) { /* Behind it: no extended capability, zero. */
        uint8_t byte = device->config[offset + i];
        if (offset + i == STATUS && __atomic_load_n(&device->line, __ATOMIC_RELAXED))
            byte |= STATUS_INTX;
        value |= (uint64_t)byte << (8 * i);
    }
    return value;
}

static int touches(uint32_t offset, uint32_t size, uint32_t from, uint32_t to) {
    return offset < to && offset + size > from;
}

static void config_write(struct pci_device *device, uint32_t offset, uint64_t value, uint32_t size) {
    for (uint32_t i = 0; i < size && offset + i < PCI_CONFIG_SIZE; i++) {
        uint32_t at = offset + i;
        uint8_t byte = (uint8_t)(value >> (8 * i)), mask = device->write_mask[at];
        byte = (uint8_t)((device->config[at] & ~mask) | (byte & mask)) & (uint8_t)~(byte & device->clear_mask[at]);
        __atomic_store_n(&device->config[at], byte, __ATOMIC_RELAXED);
    }
    if (touches(offset, size, COMMAND, COMMAND + 2) || touches(offset, size, BARS, BARS_END))
        bars_written(device);
    uint32_t control = device->msix.capability + 2u;
    if (device->msix.count && touches(offset, size, control, control + 2))
        msix_control(device, (uint16_t)pci_get(device->config, control, 2));
    pci_line(device);
    if (device->ops->config_written)
        device->ops->config_written(device, offset, size);
}

static uint64_t function_read(struct pci *pci, uint32_t slot, uint32_t function, uint32_t offset, uint32_t size) {
    uint64_t value = UINT64_MAX;
    pthread_mutex_lock(&pci->lock);
    if (slot < pci->count && function == 0)
        value = config_read(pci->devices[slot], offset, size);
    pthread_mutex_unlock(&pci->lock);
    return value;
}

static void function_write(struct pci *pci, uint32_t slot, uint32_t function, uint32_t offset, uint64_t value,
                           uint32_t size) {
    pthread_mutex_lock(&pci->lock);
    if (slot < pci->count && function == 0)
        config_write(pci->devices[slot], offset, value, size);
    pthread_mutex_unlock(&pci->lock);
}

/* --- ECAM: device in bits 15 to 19, function in 12 to 14, register below (PCIe 3.0, 7.2.2) --- */

static uint64_t ecam_read(void *device, uint64_t offset, uint32_t size) {
    return function_read(device, (uint32_t)(offset >> 15), (offset >> 12) & 7, offset % ECAM_DEVICE, size);
}

static void ecam_write(void *device, uint64_t offset, uint64_t value, uint32_t size) {
    function_write(device, (uint32_t)(offset >> 15), (offset >> 12) & 7, offset % ECAM_DEVICE, value, size);
}

/* --- ports 0xcf8 (address, 32 bits at once) and 0xcfc (data): mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2) --- */

/* Checked: enabled, bus 0, no reserved bit. Where the four bytes at the data port are. */
static int selected(struct pci *pci, uint32_t *slot, uint32_t *function, uint32_t *offset) {
    uint32_t address = __atomic_load_n(&pci->address, __ATOMIC_RELAXED);
    *slot = (address >> 11) & 31;
    *function = (address >> 8) & 7;
    *offset = address & 0xfc;
    return (address & 0xffff0000) == 0x80000000;
}

static uint64_t ports_read(void *device, uint64_t offset, uint32_t size) {
    struct pci *pci = device;
    uint32_t slot, function, at;
    if (offset == 0 && size == 4)
        return __atomic_load_n(&pci->address, __ATOMIC_RELAXED);
    if (offset < 4 || size > 4 || !selected(pci, &slot, &function, &at))
        return UINT64_MAX;
    return function_read(pci, slot, function, at + (uint32_t)offset - 4, size);
}

static void ports_write(void *device, uint64_t offset, uint64_t value, uint32_t size) {
    struct pci *pci = device;
    uint32_t slot, function, at;
    if (offset == 0 && size == 4)
        __atomic_store_n(&pci->address, (uint32_t)value & ~3u, __ATOMIC_RELAXED);
    else if (offset >= 4 && size <= 4 && selected(pci, &slot, &function, &at))
        function_write(pci, slot, function, at + (uint32_t)offset - 4, value, size);
}

/* --- devices --- */

int pci_add(struct machine *machine, struct pci_device *device, const struct pci_ops *ops, const char *name,
            const struct pci_config *config) {
    struct pci *pci = &machine->pci;
    if (pci->count == PCI_DEVICES)
        return -ENOSPC;
    int failed = pthread_mutex_init(&device->msix.lock, NULL);
    if (failed)
        return -failed;
    device->ops = ops;
    device->machine = machine;
    device->pci = pci;
    device->slot = pci->count;
    strncpy(device->name, name, sizeof device->name - 1);
    pci_set(device->config, VENDOR, 2, config->vendor);
    pci_set(device->config, DEVICE, 2, config->device);
    pci_set(device->config, REVISION, 1, config->revision);
    pci_set(device->config, CLASS, 3, config->class_code);
    pci_set(device->config, SUBSYSTEM_VENDOR, 2, config->subsystem_vendor);
    pci_set(device->config, SUBSYSTEM, 2, config->subsystem);
    pci_set(device->config, PIN, 1, config->interrupt_pin ? 1 : 0);
    if (config->interrupt_pin)
        pci_set(device->config, LINE, 1, pci->first_gsi + device->slot % pci->gsis);
    /* Firmware leaves decoding on. A line that no driver listens to is off until one enables the device. */
    device->command = PCI_COMMAND_MEMORY | (config->interrupt_pin ? PCI_COMMAND_NO_INTX : 0);
    pci_set(device->config, COMMAND, 2, device->command);
    pci_set(device->write_mask, COMMAND, 2,
            PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_NO_INTX | COMMAND_PARITY | COMMAND_SERR);
    pci_set(device->clear_mask, STATUS, 2, STATUS_ERRORS);
    pci_set(device->write_mask, CACHE_LINE, 2, 0xffff); /* and the latency timer: kept, no meaning */
    pci_set(device->write_mask, LINE, 1, 0xff);
    device->capabilities_end = FIRST_CAPABILITY;
    device->last_capability = CAPABILITIES;
    pci->devices[pci->count++] = device;
    return 0;
}

int pci_add_capability(struct pci_device *device, uint8_t id, uint8_t size) {
    uint32_t at = device->capabilities_end, rounded = (size + 3u) & ~3u; /* 6.7: on a multiple of four */
    if (size < 2 || at + rounded > PCI_CONFIG_SIZE)
        return -ENOSPC;
    device->config[at] = id;
    device->config[at + 1] = 0;
    device->config[device->last_capability] = (uint8_t)at;
    device->config[STATUS] |= STATUS_CAPABILITIES;
    device->last_capability = (uint8_t)(at + 1);
    /* 255 stands for a full space: nothing of two bytes fits there. */
    device->capabilities_end = (uint8_t)(at + rounded < PCI_CONFIG_SIZE ? at + rounded : PCI_CONFIG_SIZE - 1);
    return (int)at;
}

static void free_bridge(struct pci_device *device) {
    free(device);
}

static const struct pci_ops host_bridge_ops = {.name = "host-bridge", .close = free_bridge};

/* 1b36:0008, which the PCI ID list calls a generic host bridge: drivers and quirks leave it alone. */
static const struct pci_config host_bridge = {
    .vendor = 0x1b36, .device = 0x0008, .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .class_code = 0x060000,
};

static int open_bus(struct pci *pci, const struct pci_place *place) {
    struct machine *machine = pci->machine;
    struct bus_range ecam = {
        .address = place->ecam, .size = ECAM_SIZE, .read = ecam_read, .write = ecam_write, .device = pci,
    };
    struct bus_range ports = {
        .address = place->config_port, .size = 8, .read = ports_read, .write = ports_write, .device = pci,
    };
    struct pci_device *bridge = calloc(1, sizeof *bridge);
    int error;
    if (!bridge)
        return -ENOMEM;
    if ((error = bus_add(&machine->mmio, &ecam)) || (error = bus_add(&machine->ports, &ports)) ||
        (error = pci_add(machine, bridge, &host_bridge_ops, "host bridge", &host_bridge)))
        free(bridge);
    return error;
}

int pci_open(struct pci *pci, struct machine *machine, const struct pci_place *place) {
    if (!place->gsis)
        return -EINVAL;
    *pci = (struct pci){
        .machine = machine,
        .first_gsi = place->first_gsi,
        .gsis = place->gsis,
        .low = {place->low_start, place->low_end, place->low_start},
        .high = {place->high_start, place->high_end, place->high_start},
    };
    int failed = pthread_mutex_init(&pci->lock, NULL);
    if (failed)
        return -failed;
    failed = pthread_mutex_init(&pci->line_lock, NULL);
    if (failed) {
        pthread_mutex_destroy(&pci->lock);
        return -failed;
    }
    int error = open_bus(pci, place);
    if (error)
        pci_close(pci);
    return error;
}

void pci_close(struct pci *pci) {
    while (pci->count) {
        struct pci_device *device = pci->devices[--pci->count];
        pthread_mutex_destroy(&device->msix.lock);
        device->ops->close(device);
    }
    free(pci->doorbells);
    pthread_mutex_destroy(&pci->line_lock);
    pthread_mutex_destroy(&pci->lock);
}

int pci_start(struct pci *pci) {
    for (uint32_t slot = 0; slot < pci->count; slot++) {
        struct pci_device *device = pci->devices[slot];
        int error = device->ops->start ? device->ops->start(device) : 0;
        if (error)
            return error;
    }
    return 0;
}

void pci_hold(struct pci *pci, int on) {
    for (uint32_t slot = 0; slot < pci->count; slot++)
        if (pci->devices[slot]->ops->hold)
            pci->devices[slot]->ops->hold(pci->devices[slot], on);
}

/* What the guest wrote to configuration space; the rest is the device's own. Message control comes by msix_state. */
static void config_state(struct pci_device *device, struct state *state) {
    uint8_t config[PCI_CONFIG_SIZE];
    memcpy(config, device->config, sizeof config);
    if (!state_alike(state, device->name, sizeof device->name) || !state_alike(state, config, COMMAND))
        state_wrong(state, "it has another device in the place of %s %s", device->ops->name, device->name);
    STATE(state, config);
    for (uint32_t i = 0; i < sizeof config; i++) {
        uint8_t mask = device->write_mask[i] | device->clear_mask[i];
        if (!(i >= BARS && i < BARS_END)) /* These show where the BARs are, which is known by itself. */
            device->config[i] = (uint8_t)((device->config[i] & ~mask) | (config[i] & mask));
    }
    uint8_t line = device->line != 0;
    STATE(state, line);
    device->line = line != 0;
}

void pci_state(struct pci *pci, struct state *state) {
    STATE(state, pci->address);
    pci->address &= ~3u;
    if (!state_alike(state, &pci->count, sizeof pci->count))
        state_wrong(state, "it is of another number of devices on the PCI bus; this guest has %u", pci->count - 1);
    pthread_mutex_lock(&pci->lock);
    for (uint32_t slot = 0; slot < pci->count && state_fine(state); slot++)
        config_state(pci->devices[slot], state);
    if (state_fine(state))
        bars_state(pci, state);
    for (uint32_t slot = 0; slot < pci->count && state_fine(state); slot++)
        msix_state(pci->devices[slot], state);
    pthread_mutex_unlock(&pci->lock);
    for (uint32_t slot = 0; slot < pci->count && state_fine(state); slot++) {
        struct pci_device *device = pci->devices[slot];
        if (device->ops->state)
            device->ops->state(device, state);
        if (!state->saving && state_fine(state))
            pci_line(device);
    }
}

static void reset(struct pci_device *device) {
    pthread_mutex_lock(&device->pci->lock);
    pci_set(device->config, COMMAND, 2, device->command);
    msix_reset(device);
    bars_show(device);
    pthread_mutex_unlock(&device->pci->lock);
    pci_intx(device, 0);
    if (device->ops->reset)
        device->ops->reset(device);
}

void pci_reset(struct pci *pci) {
    for (uint32_t slot = 0; slot < pci->count; slot++)
        reset(pci->devices[slot]);
}
