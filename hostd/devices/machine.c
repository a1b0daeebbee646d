/* machine.c: see machine.h. */
#include "machine.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

/* Whether the exit that this thread serves is to go up. */
static _Thread_local int going_up;

static void free_parts(struct machine *machine, int parts) {
    switch (parts) {
    case 5: pci_close(&machine->pci); /* fall through */
    case 4: loop_close(&machine->loop); /* fall through */
    case 3: bus_close(&machine->mmio); /* fall through */
    case 2: bus_close(&machine->ports); /* fall through */
    case 1:
        if (machine->recorder) {
            interrupt_recorder_close(machine->recorder);
            free(machine->recorder);
        } else {
            kvm_interrupts_close(&machine->kvm);
        }
    }
    free(machine);
}

static int open_interrupts(struct machine *machine, int vm_fd) {
    machine->next_gsi = INTERRUPTS_FIRST_GSI;
    if (vm_fd >= 0) {
        machine->interrupts = (struct interrupts){&kvm_interrupt_ops, &machine->kvm};
        return kvm_interrupts_open(&machine->kvm, vm_fd);
    }
    machine->recorder = calloc(1, sizeof *machine->recorder);
    if (!machine->recorder)
        return -ENOMEM;
    machine->interrupts = (struct interrupts){&recorder_interrupt_ops, machine->recorder};
    return interrupt_recorder_open(machine->recorder);
}

struct machine *machine_new(struct slot_rows *memory, int vm_fd, const struct pci_place *place) {
    struct machine *machine = calloc(1, sizeof *machine);
    if (!machine) {
        errno = ENOMEM;
        return NULL;
    }
    int parts = 0, error;
    machine->memory = memory;
    if (!(error = open_interrupts(machine, vm_fd)) && ++parts && !(error = bus_open(&machine->ports)) && ++parts &&
        !(error = bus_open(&machine->mmio)) && ++parts && !(error = loop_open(&machine->loop)) && ++parts &&
        !(error = pci_open(&machine->pci, machine, place)))
        return machine;
    free_parts(machine, parts);
    errno = -error;
    return NULL;
}

void machine_free(struct machine *machine) {
    machine_stop(machine);
    for (uint32_t i = machine->count; i-- > 0;)
        machine->devices[i].close(machine->devices[i].device);
    free_parts(machine, 5);
}

int machine_add(struct machine *machine, const struct machine_device *device) {
    if (machine->count == MACHINE_DEVICES)
        return -ENOSPC;
    machine->devices[machine->count++] = *device;
    return 0;
}

int machine_start(struct machine *machine) {
    int error = pci_start(&machine->pci);
    for (uint32_t i = 0; i < machine->count && !error; i++)
        if (machine->devices[i].start)
            error = machine->devices[i].start(machine->devices[i].device);
    return error ? error : loop_start(&machine->loop);
}

void machine_stop(struct machine *machine) {
    loop_stop(&machine->loop);
}

/* --- templates --- */

void machine_hold(struct machine *machine) {
    machine->held = machine->loop.running;
    loop_stop(&machine->loop);
    pci_hold(&machine->pci, 1);
}

int machine_release(struct machine *machine) {
    pci_hold(&machine->pci, 0);
    return machine->held ? loop_start(&machine->loop) : 0;
}

/* All that there is, in the order in which it was added. */
static void everything(struct machine *machine, struct state *state) {
    if (!state_alike(state, &machine->count, sizeof machine->count))
        state_wrong(state, "it is of another number of devices");
    for (uint32_t i = 0; i < machine->count && state_fine(state); i++) {
        const struct machine_device *device = &machine->devices[i];
        if (!state_alike(state, device->name, strlen(device->name)))
            state_wrong(state, "it has another device in the place of %s", device->name);
        if (device->state && state_fine(state))
            device->state(device->device, state);
    }
    if (state_fine(state))
        pci_state(&machine->pci, state);
}

int64_t machine_save(struct machine *machine, uint8_t *to, uint64_t room, char *why) {
    struct state state = {.saving = 1};
    *why = 0;
    if (machine->power != MACHINE_ON)
        state_wrong(&state, "it goes down");
    everything(machine, &state);
    uint64_t size = state.size;
    if (to && room >= size && state_fine(&state)) {
        state = (struct state){.saving = 1, .at = to, .end = to + room};
        everything(machine, &state);
    }
    if (state_fine(&state))
        return (int64_t)size;
    strcpy(why, state.why);
    return -EBUSY;
}

int machine_restore(struct machine *machine, const uint8_t *from, uint64_t size, char *why) {
    struct state state = {.at = (uint8_t *)from, .end = (uint8_t *)from + size}; /* Only read from: not saving. */
    *why = 0;
    everything(machine, &state);
    if (state_fine(&state) && state.at != state.end)
        state_wrong(&state, "it is too long");
    if (state_fine(&state))
        return 0;
    strcpy(why, state.why);
    return -EINVAL;
}

void machine_up(void) {
    going_up = 1;
}

void machine_set_power(struct machine *machine, enum machine_power power) {
    __atomic_store_n(&machine->power, power, __ATOMIC_SEQ_CST);
    machine_up();
}

/* Checked: 1 to 8 bytes; the bus looks at the rest. */
static void access_once(struct machine *machine, enum machine_space space, uint64_t address, void *data, uint32_t size,
                        int write) {
    struct bus *bus = space == MACHINE_PORTS ? &machine->ports : &machine->mmio;
    uint64_t value = 0;
    if (!size || size > sizeof value)
        return;
    if (write) {
        memcpy(&value, data, size);
        bus_write(bus, address, value, size);
    } else {
        value = bus_read(bus, address, size);
        memcpy(data, &value, size);
    }
}

static int served(void) {
    int up = going_up;
    going_up = 0;
    return up ? VCPU_UP : VCPU_HANDLED;
}

int machine_access(struct machine *machine, enum machine_space space, uint64_t address, void *data, uint32_t size,
                   int write) {
    access_once(machine, space, address, data, size, write);
    return served();
}

int machine_exit(void *context, struct kvm_run *run) {
    struct machine *machine = context;
    uint8_t *data;
    switch (run->exit_reason) {
    case KVM_EXIT_IO: /* A string instruction has several. */
        __atomic_fetch_add(&machine->port_exits, 1, __ATOMIC_RELAXED);
        data = (uint8_t *)run + run->io.data_offset;
        for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size)
            access_once(machine, MACHINE_PORTS, run->io.port, data, run->io.size, run->io.direction == KVM_EXIT_IO_OUT);
        return served();
    case KVM_EXIT_MMIO:
        __atomic_fetch_add(&machine->mmio_exits, 1, __ATOMIC_RELAXED);
        access_once(machine, MACHINE_MMIO, run->mmio.phys_addr, run->mmio.data, run->mmio.len, run->mmio.is_write);
        return served();
    default:
        return VCPU_UP;
    }
}

uint32_t machine_moves(struct machine *machine, struct machine_move *moves, uint32_t room) {
    uint32_t count = 0;
    pthread_mutex_lock(&machine->pci.lock);
    for (uint32_t slot = 0; slot < machine->pci.count; slot++)
        for (uint32_t i = 0; i < PCI_BARS; i++) {
            const struct pci_bar *bar = &machine->pci.devices[slot]->bars[i];
            if (bar->kind == PCI_BAR_MEMORY && bar->address != bar->mapped && count < room)
                moves[count++] = (struct machine_move){slot, i, bar->size, bar->mapped, bar->address};
        }
    pthread_mutex_unlock(&machine->pci.lock);
    return count;
}

void machine_moved(struct machine *machine, uint32_t slot, uint32_t bar, uint64_t address) {
    pthread_mutex_lock(&machine->pci.lock);
    if (slot < machine->pci.count && bar < PCI_BARS)
        machine->pci.devices[slot]->bars[bar].mapped = address;
    pthread_mutex_unlock(&machine->pci.lock);
}
