/*
 * machine.h: the devices of one guest: what answers its exits, and the thread that serves what may take longer.
 */
#ifndef HOSTD_DEVICES_MACHINE_H
#define HOSTD_DEVICES_MACHINE_H

#include <stdint.h>

#include "bus.h"
#include "interrupts.h"
#include "loop.h"
#include "pci.h"
#include "rows.h"
#include "state.h"

struct kvm_run;

enum machine_space { MACHINE_PORTS, MACHINE_MMIO };

/* What the guest asked of its power (power.h). */
enum machine_power { MACHINE_ON, MACHINE_OFF, MACHINE_RESET };

/* A device that is not on the PCI bus. */
struct machine_device {
    const char *name;
    int (*start)(void *device);   /* optional: 0 or -errno */
    void (*close)(void *device);  /* frees it */
    void (*state)(void *device, struct state *state); /* optional: saves what it knows, or takes it back */
    void *device;
};

#define MACHINE_DEVICES 16

struct machine {
    struct slot_rows *memory;     /* the guest's; not the machine's */
    struct bus ports, mmio;
    struct pci pci;
    struct loop loop;
    struct interrupts interrupts;
    uint32_t next_gsi;            /* for msix_route */
    uint32_t power;               /* atomic: enum machine_power */
    uint32_t count;
    struct machine_device devices[MACHINE_DEVICES];
    struct kvm_interrupts kvm;
    struct interrupt_recorder *recorder; /* without a VM */
    int held;                     /* machine_hold found it running */
    uint64_t port_exits, mmio_exits;     /* counters */
};

/* `vm_fd` -1: no VM; interrupts are recorded. NULL with errno set. */
struct machine *machine_new(struct slot_rows *memory, int vm_fd, const struct pci_place *place);

/* Stops it, and frees it with all its devices. No vCPU may be in machine_exit. */
void machine_free(struct machine *machine);

/* For what is not on the PCI bus; it is closed with the machine. 0 or -ENOSPC. */
int machine_add(struct machine *machine, const struct machine_device *device);

/* Starts the devices and the I/O thread. 0 or -errno. */
int machine_start(struct machine *machine);
void machine_stop(struct machine *machine);

/*
 * Between these two nothing of it happens on its own: no thread runs, no other process has a queue. What was asked before is
 * done, or still to be done. No vCPU may run meanwhile.
 */
void machine_hold(struct machine *machine);
int machine_release(struct machine *machine); /* 0 or -errno */

/*
 * While it is held: what its devices know, into `room` bytes at `to`. Returns how many it takes, whatever there is room for,
 * or -errno with *why (STATE_WHY bytes) in words: -EBUSY when it can't be saved.
 */
int64_t machine_save(struct machine *machine, uint8_t *to, uint64_t room, char *why);

/*
 * Before it starts, with the same devices in the same order, and the guest's memory as it was: 0, or -EINVAL with *why. Then
 * memory BARs may be elsewhere (machine_moves).
 */
int machine_restore(struct machine *machine, const uint8_t *from, uint64_t size, char *why);

/* The vcpu_exit_fn (run.h) of all vCPUs: ports and MMIO, whoever answers; other exits go up. */
int machine_exit(void *machine, struct kvm_run *run);

/*
 * The same without a VM: the guest reads (or writes) `size` bytes. Returns VCPU_HANDLED, or VCPU_UP when there is
 * something for Python; the access is complete either way.
 */
int machine_access(struct machine *machine, enum machine_space space, uint64_t address, void *data, uint32_t size,
                   int write);

/* In a vCPU's thread, from a device: this exit goes up to Python when it is complete. */
void machine_up(void);

/* The guest's wish; the exit goes up. */
void machine_set_power(struct machine *machine, enum machine_power power);

/*
 * Memory BARs that are to be mapped elsewhere than they are: at most `room`; returns how many. Python maps them and
 * says so.
 */
struct machine_move {
    uint32_t slot, bar;
    uint64_t size, from, to;      /* 0: nowhere */
};
uint32_t machine_moves(struct machine *machine, struct machine_move *moves, uint32_t room);
void machine_moved(struct machine *machine, uint32_t slot, uint32_t bar, uint64_t address);

#endif
