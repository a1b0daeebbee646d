/* bars.c: base address registers: sizing, moving, and the doorbells that lie in them (PCI Local Bus 3.0, 6.2.5). */
#include <errno.h>
#include <stdlib.h>

#include "machine.h"
#include "pci.h"
#include "state.h"

enum { BAR_REGISTER = 0x10, COMMAND = 0x04, PAGE = 4096, ADDRESS_BITS = ~0xf };

/* --- what answers --- */

static int decodes(const struct pci_device *device) {
    return (__atomic_load_n(&device->config[COMMAND], __ATOMIC_RELAXED) & PCI_COMMAND_MEMORY) != 0;
}

static uint64_t bar_read(void *context, uint64_t offset, uint32_t size) {
    struct pci_bar *bar = context;
    return decodes(bar->device) ? bar->read(bar->device, offset, size) : UINT64_MAX;
}

static void bar_write(void *context, uint64_t offset, uint64_t value, uint32_t size) {
    struct pci_bar *bar = context;
    if (decodes(bar->device))
        bar->write(bar->device, offset, value, size);
}

static int place_registers(struct pci_bar *bar, uint64_t address) {
    struct bus_range range = {
        .address = address, .size = bar->size, .read = bar_read, .write = bar_write, .device = bar,
    };
    return bus_add(&bar->device->machine->mmio, &range);
}

/* --- the registers --- */

static uint32_t register_of(int bar) {
    return BAR_REGISTER + 4 * (uint32_t)bar;
}

void bars_show(struct pci_device *device) {
    for (int i = 0; i < PCI_BARS; i++) {
        const struct pci_bar *bar = &device->bars[i];
        if (bar->kind == PCI_BAR_NONE)
            continue;
        pci_set(device->config, register_of(i), 4, (uint32_t)bar->address | bar->flags);
        if (bar->flags & PCI_BAR_64)
            pci_set(device->config, register_of(i + 1), 4, (uint32_t)(bar->address >> 32));
    }
}

static uint64_t shown(const struct pci_device *device, int i) {
    uint64_t address = pci_get(device->config, register_of(i), 4) & (uint32_t)ADDRESS_BITS;
    if (device->bars[i].flags & PCI_BAR_64)
        address |= (uint64_t)pci_get(device->config, register_of(i + 1), 4) << 32;
    return address;
}

static int inside(const struct pci_window *window, uint64_t address, uint64_t size) {
    return address >= window->start && address < window->end && size <= window->end - address;
}

/* May the BAR be at `address`: in a window, over no other BAR? */
static int fits(const struct pci_bar *moving, uint64_t address) {
    const struct pci *pci = moving->device->pci;
    int high = inside(&pci->high, address, moving->size), low = inside(&pci->low, address, moving->size);
    if (!(moving->flags & PCI_BAR_64 ? high : low) && !(low && moving->kind == PCI_BAR_REGISTERS))
        return 0; /* Memory is a slot, and the low window lies in a hole that never has one. */
    for (uint32_t slot = 0; slot < pci->count; slot++)
        for (int i = 0; i < PCI_BARS; i++) {
            const struct pci_bar *bar = &pci->devices[slot]->bars[i];
            if (bar->kind != PCI_BAR_NONE && bar != moving && address < bar->address + bar->size &&
                bar->address < address + moving->size)
                return 0;
        }
    return 1;
}

static void arm(struct pci_doorbell *doorbell, uint64_t bar_address, int on) {
    struct interrupts *interrupts = &doorbell->device->machine->interrupts;
    doorbell->doorbell.address = bar_address + doorbell->offset;
    int error = interrupts_doorbell(interrupts, &doorbell->doorbell, on);
    doorbell->armed = on && !error;
}

/* Checked: `address` fits. */
static void move(struct pci_bar *bar, int number, uint64_t address) {
    struct pci *pci = bar->device->pci;
    pci->moves++;
    if (bar->kind == PCI_BAR_MEMORY) {
        bar->address = address;
        machine_up();
        return;
    }
    for (uint32_t i = 0; i < pci->doorbell_count; i++) {
        struct pci_doorbell *doorbell = &pci->doorbells[i];
        if (doorbell->device == bar->device && doorbell->bar == number && doorbell->armed)
            arm(doorbell, bar->address, 0);
    }
    bus_remove(&pci->machine->mmio, bar->address);
    if (place_registers(bar, address)) { /* Something that is no BAR is there: back. */
        pci->bad_moves++;
        place_registers(bar, bar->address);
    } else {
        bar->address = address;
    }
    for (uint32_t i = 0; i < pci->doorbell_count; i++) {
        struct pci_doorbell *doorbell = &pci->doorbells[i];
        if (doorbell->device == bar->device && doorbell->bar == number)
            arm(doorbell, bar->address, 1);
    }
}

void bars_written(struct pci_device *device) {
    /* A driver turns decoding off while it writes all ones to learn sizes: nothing moves then. */
    if (!decodes(device))
        return;
    for (int i = 0; i < PCI_BARS; i++) {
        struct pci_bar *bar = &device->bars[i];
        if (bar->kind == PCI_BAR_NONE)
            continue;
        uint64_t address = shown(device, i);
        if (address == bar->address)
            continue;
        if (fits(bar, address))
            move(bar, i, address);
        else
            device->pci->bad_moves++;
    }
}

/* --- templates --- */

/* Checked: every BAR is in a window, aligned, and over no other. */
static int all_fit(const struct pci *pci, uint64_t to[PCI_DEVICES][PCI_BARS]) {
    for (uint32_t slot = 0; slot < pci->count; slot++)
        for (int i = 0; i < PCI_BARS; i++) {
            const struct pci_bar *bar = &pci->devices[slot]->bars[i];
            uint64_t address = to[slot][i];
            if (bar->kind == PCI_BAR_NONE)
                continue;
            int low = inside(&pci->low, address, bar->size), high = inside(&pci->high, address, bar->size);
            if ((address & (bar->size - 1)) || !(bar->flags & PCI_BAR_64 ? high || (low && bar->kind == PCI_BAR_REGISTERS) : low))
                return 0;
            for (uint32_t other = 0; other < pci->count; other++)
                for (int j = 0; j < PCI_BARS; j++) {
                    const struct pci_bar *with = &pci->devices[other]->bars[j];
                    if (with != bar && with->kind != PCI_BAR_NONE && address < to[other][j] + with->size &&
                        to[other][j] < address + bar->size)
                        return 0;
                }
        }
    return 1;
}

static void ring_all(struct pci *pci, int on) {
    for (uint32_t i = 0; i < pci->doorbell_count; i++) {
        struct pci_doorbell *doorbell = &pci->doorbells[i];
        if (on || doorbell->armed)
            arm(doorbell, doorbell->device->bars[doorbell->bar].address, on);
    }
}

void bars_state(struct pci *pci, struct state *state) {
    uint64_t to[PCI_DEVICES][PCI_BARS] = {0};
    for (uint32_t slot = 0; slot < pci->count; slot++)
        for (int i = 0; i < PCI_BARS; i++) {
            struct pci_device *device = pci->devices[slot];
            struct pci_bar *bar = &device->bars[i];
            if (!state_alike(state, &bar->kind, sizeof bar->kind) || !state_alike(state, &bar->size, sizeof bar->size))
                state_wrong(state, "its %s %s is not this one's: BAR %d has another size", device->ops->name, device->name, i);
            to[slot][i] = bar->address;
            STATE(state, to[slot][i]);
        }
    if (state->saving || !state_fine(state))
        return;
    if (!all_fit(pci, to)) {
        state_wrong(state, "its devices' registers lie where none can be");
        return;
    }
    ring_all(pci, 0);
    for (uint32_t slot = 0; slot < pci->count; slot++)
        for (int i = 0; i < PCI_BARS; i++)
            if (pci->devices[slot]->bars[i].kind == PCI_BAR_REGISTERS)
                bus_remove(&pci->machine->mmio, pci->devices[slot]->bars[i].address);
    for (uint32_t slot = 0; slot < pci->count; slot++) {
        for (int i = 0; i < PCI_BARS; i++) {
            struct pci_bar *bar = &pci->devices[slot]->bars[i];
            if (bar->kind == PCI_BAR_NONE)
                continue;
            bar->address = to[slot][i];
            if (bar->kind == PCI_BAR_REGISTERS && place_registers(bar, bar->address))
                state_wrong(state, "its devices' registers lie where none can be");
        }
        bars_show(pci->devices[slot]);
    }
    ring_all(pci, 1);
}

/* --- adding --- */

static int take(struct pci_window *window, uint64_t size, uint64_t *address) {
    uint64_t align = size < PAGE ? PAGE : size; /* No two BARs in one page: a guest maps pages into programs. */
    if (window->next > window->end || align > window->end - window->next)
        return -ENOSPC;
    uint64_t start = (window->next + align - 1) & ~(align - 1);
    if (start < window->next || !inside(window, start, align))
        return -ENOSPC;
    *address = start;
    window->next = start + align;
    return 0;
}

static int add(struct pci_device *device, int number, const struct pci_bar *wanted) {
    struct pci_bar *bar = &device->bars[number];
    int wide = (wanted->flags & PCI_BAR_64) != 0;
    if (number < 0 || number + wide >= PCI_BARS || wanted->size < 16 || (wanted->size & (wanted->size - 1)) ||
        (!wide && wanted->size > 1u << 31))
        return -EINVAL;
    if (bar->kind != PCI_BAR_NONE || (wide && bar[1].kind != PCI_BAR_NONE) ||
        (number && bar[-1].kind != PCI_BAR_NONE && (bar[-1].flags & PCI_BAR_64)))
        return -EEXIST;
    uint64_t address;
    int error = take(wide ? &device->pci->high : &device->pci->low, wanted->size, &address);
    if (error)
        return error;
    *bar = *wanted;
    bar->device = device;
    if (bar->kind == PCI_BAR_REGISTERS && (error = place_registers(bar, address))) {
        bar->kind = PCI_BAR_NONE;
        return error;
    }
    bar->address = address;
    uint64_t mask = ~(bar->size - 1);
    pci_set(device->write_mask, register_of(number), 4, (uint32_t)mask & (uint32_t)ADDRESS_BITS);
    if (wide)
        pci_set(device->write_mask, register_of(number + 1), 4, (uint32_t)(mask >> 32));
    bars_show(device);
    return 0;
}

int pci_add_registers(struct pci_device *device, int bar, uint64_t size, uint32_t flags, pci_read_fn read,
                      pci_write_fn write) {
    return add(device, bar, &(struct pci_bar){
        .kind = PCI_BAR_REGISTERS,
        .flags = flags & (PCI_BAR_64 | PCI_BAR_PREFETCH),
        .size = size,
        .read = read,
        .write = write,
    });
}

int pci_add_memory(struct pci_device *device, int bar, uint64_t size) {
    if (size < PAGE)
        return -EINVAL;
    return add(device, bar, &(struct pci_bar){
        .kind = PCI_BAR_MEMORY, .flags = PCI_BAR_64 | PCI_BAR_PREFETCH, .size = size,
    });
}

static struct pci_doorbell *another(struct pci *pci) {
    if (pci->doorbell_count == pci->doorbell_room) {
        uint32_t room = pci->doorbell_room ? 2 * pci->doorbell_room : 16;
        struct pci_doorbell *grown = realloc(pci->doorbells, room * sizeof *grown);
        if (!grown)
            return NULL;
        pci->doorbells = grown;
        pci->doorbell_room = room;
    }
    return &pci->doorbells[pci->doorbell_count++];
}

int pci_add_doorbell(struct pci_device *device, int bar, uint64_t offset, uint32_t size, int matched,
                     uint64_t match, int fd) {
    struct pci *pci = device->pci;
    if (bar < 0 || bar >= PCI_BARS || device->bars[bar].kind != PCI_BAR_REGISTERS || offset >= device->bars[bar].size)
        return -EINVAL;
    pthread_mutex_lock(&pci->lock);
    struct pci_doorbell *doorbell = another(pci);
    if (doorbell) {
        *doorbell = (struct pci_doorbell){
            .device = device,
            .bar = bar,
            .offset = offset,
            .doorbell = {.size = size, .fd = fd, .matched = matched, .match = match},
        };
        arm(doorbell, device->bars[bar].address, 1); /* KVM takes no more than it has room for: then there are exits. */
    }
    pthread_mutex_unlock(&pci->lock);
    return doorbell ? 0 : -ENOMEM;
}
