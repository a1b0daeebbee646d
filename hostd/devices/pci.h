/*
 * pci.h: one PCI bus with its host bridge, and what every device on it is (PCI Local Bus 3.0, 6; PCIe 3.0, 7.2.2 ECAM).
 *
 * Order of locks: pci.lock (configuration space) -> the device's own -> slot_lock -> msix.lock, pci.line_lock. BAR
 * functions are called with none of them held: a device takes its own lock in them. Configuration accesses are rare and
 * hold pci.lock; a device must not touch configuration space while it holds its own lock. Interrupts (msix_raise,
 * pci_intx) may be raised under any lock.
 */
#ifndef HOSTD_DEVICES_PCI_H
#define HOSTD_DEVICES_PCI_H

#include <pthread.h>
#include <stdint.h>

#include "bus.h"
#include "interrupts.h"
#include "msix.h"

#define PCI_DEVICES 32
#define PCI_BARS 6
#define PCI_CONFIG_SIZE 256

struct machine;
struct pci;
struct pci_device;
struct state;

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_REGISTERS, PCI_BAR_MEMORY };

/* BAR flags, as in the register: */
#define PCI_BAR_64 0x4
#define PCI_BAR_PREFETCH 0x8

/* As bus_read_fn and bus_write_fn, but with the device; `offset` is in the BAR. */
typedef uint64_t (*pci_read_fn)(struct pci_device *device, uint64_t offset, uint32_t size);
typedef void (*pci_write_fn)(struct pci_device *device, uint64_t offset, uint64_t value, uint32_t size);

/* A doorbell in a BAR, which follows the BAR. */
struct pci_doorbell {
    struct pci_device *device;
    int bar;
    int armed;                 /* KVM has it */
    uint64_t offset;
    struct doorbell doorbell;
};

struct pci_bar {
    enum pci_bar_kind kind;
    uint32_t flags;
    uint64_t size;             /* a power of two, at least 16 (registers) or a page (memory) */
    uint64_t address;          /* where it answers (registers), or is to be mapped (memory); 0: nowhere */
    uint64_t mapped;           /* memory: where Python has mapped its rows; 0: not yet */
    pci_read_fn read;
    pci_write_fn write;
    struct pci_device *device; /* itself, for the bus's functions */
};

struct pci_ops {
    const char *name;          /* "ivshmem", "virtio-blk": for `inspect` */

    /* Optional. After a write to bytes `offset`.. of configuration space, which holds them already; under pci.lock. */
    void (*config_written)(struct pci_device *device, uint32_t offset, uint32_t size);
    /* Optional. Before a read, to bring bytes of device->config up to date; under pci.lock. */
    void (*config_read)(struct pci_device *device, uint32_t offset, uint32_t size);
    /* Optional. The I/O thread is about to start (descriptors may be added before, too). 0 or -errno. */
    int (*start)(struct pci_device *device);
    /* Back to the state after power-on, but for the BARs' addresses; optional. No lock held. */
    void (*reset)(struct pci_device *device);
    /* Optional. Nothing may happen on its own from now on (`on`), or again. */
    void (*hold)(struct pci_device *device, int on);
    /* Optional. Saves what it knows, or takes it back (state.h); configuration space, BARs and MSI-X are done. */
    void (*state)(struct pci_device *device, struct state *state);
    /* Free the device; nothing runs any more. */
    void (*close)(struct pci_device *device);
};

struct pci_device {
    const struct pci_ops *ops;
    struct machine *machine;
    struct pci *pci;
    uint32_t slot;
    char name[48];             /* what the user calls it, such as the region's name */
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t write_mask[PCI_CONFIG_SIZE]; /* bits that the guest may write */
    uint8_t clear_mask[PCI_CONFIG_SIZE]; /* bits that it clears by writing 1 */
    uint8_t capabilities_end;  /* where the next capability goes */
    uint8_t last_capability;   /* the register that points to it */
    struct pci_bar bars[PCI_BARS];
    struct msix msix;
    int line;                  /* pci_intx: the device wants its interrupt; written under pci.line_lock */
    uint16_t command;          /* as it is after power-on */
};

/* A window from which BARs are given addresses before the guest starts, and in which it may move them. */
struct pci_window {
    uint64_t start, end, next;
};

struct pci {
    pthread_mutex_t lock;      /* configuration space of all devices, BARs */
    pthread_mutex_t line_lock;
    struct machine *machine;
    uint32_t address;          /* port 0xCF8, as written */
    uint32_t first_gsi, gsis;  /* INTx of slot n is line first_gsi + n % gsis */
    uint32_t lines[PCI_DEVICES]; /* by line: the slots that assert it, as bits */
    struct pci_window low, high; /* for 32-bit and 64-bit BARs */
    uint32_t count;            /* of slots in use, the host bridge being 0 */
    struct pci_device *devices[PCI_DEVICES];
    struct pci_doorbell *doorbells;
    uint32_t doorbell_count, doorbell_room;
    uint64_t moves, bad_moves; /* counters: BARs moved; sent to where they can't be */
};

struct pci_config {            /* what is the device's own in the header */
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t revision;
    uint32_t class_code;       /* 24 bits: class, subclass, interface */
    int interrupt_pin;         /* 0: none, 1: INTA */
};

/* --- for devices; before the machine starts --- */

/* Puts `device`, which is zeroed, in the next slot of the machine. 0 or -errno (-ENOSPC: no slot is left). */
int pci_add(struct machine *machine, struct pci_device *device, const struct pci_ops *ops, const char *name,
            const struct pci_config *config);

/* BARs are given addresses at once. A 64-bit BAR takes two registers. 0 or -errno (-ENOSPC: the window is full). */
int pci_add_registers(struct pci_device *device, int bar, uint64_t size, uint32_t flags, pci_read_fn read,
                      pci_write_fn write);

/* Memory: always 64-bit and prefetchable. Python maps it and follows its moves (machine.h). */
int pci_add_memory(struct pci_device *device, int bar, uint64_t size);

/*
 * Appends a capability of `size` bytes (the first two are filled in here) and returns its offset, or -ENOSPC. The
 * caller sets the other bytes in device->config, and what the guest may write of them in device->write_mask.
 */
int pci_add_capability(struct pci_device *device, uint8_t id, uint8_t size);

/* --- for devices; at any time, from any thread --- */

/*
 * Writes of `size` bytes at `offset` of BAR `bar` (only of the value `match`, if `matched`) signal `fd` with no exit,
 * where KVM can; else they come to the BAR's write function, which must do the same. Kept up when the BAR moves. Takes
 * pci.lock: not under the device's own lock. 0 or -errno.
 */
int pci_add_doorbell(struct pci_device *device, int bar, uint64_t offset, uint32_t size, int matched,
                     uint64_t match, int fd);

/* Assert or release INTA. Has no effect on the line while MSI-X is on or COMMAND disables it. Under any lock. */
void pci_intx(struct pci_device *device, int level);

/* May the device reach memory (COMMAND bus master)? */
int pci_master(const struct pci_device *device);

/* 16- and 32-bit fields of config, write_mask... */
static inline uint32_t pci_get(const uint8_t *bytes, uint32_t offset, uint32_t size) {
    uint32_t value = 0;
    for (uint32_t i = 0; i < size; i++)
        value |= (uint32_t)bytes[offset + i] << (8 * i);
    return value;
}

static inline void pci_set(uint8_t *bytes, uint32_t offset, uint32_t size, uint32_t value) {
    for (uint32_t i = 0; i < size; i++)
        bytes[offset + i] = (uint8_t)(value >> (8 * i));
}

/* --- for the machine --- */

struct pci_place {             /* where hostd.boot.linux.layout puts it */
    uint64_t ecam;             /* 1 MiB */
    uint16_t config_port;      /* 0xCF8 */
    uint64_t low_start, low_end, high_start, high_end;
    uint32_t first_gsi, gsis;
};

int pci_open(struct pci *pci, struct machine *machine, const struct pci_place *place);
void pci_close(struct pci *pci);
int pci_start(struct pci *pci);

/* All devices: see pci_ops. */
void pci_hold(struct pci *pci, int on);
void pci_state(struct pci *pci, struct state *state);

/* All devices as after power-on, their BARs where they are. Nothing runs. */
void pci_reset(struct pci *pci);

/* --- between pci.c, bars.c and msix.c --- */

#define PCI_COMMAND_MEMORY 0x2
#define PCI_COMMAND_MASTER 0x4
#define PCI_COMMAND_NO_INTX 0x400

/* The guest has written BAR registers or turned decoding on: what is to answer elsewhere now does. Under pci.lock. */
void bars_written(struct pci_device *device);
/* The registers show where the BARs are. */
void bars_show(struct pci_device *device);
/* Where the BARs are; all of them, since two may have changed places. Under pci.lock. */
void bars_state(struct pci *pci, struct state *state);
/* After a change of the line, of COMMAND or of MSI-X. */
void pci_line(struct pci_device *device);

#endif
