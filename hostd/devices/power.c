/* power.c: see power.h. */
#include "power.h"

#include <errno.h>
#include <stdlib.h>

enum { SLEEP_CONTROL, SLEEP_STATUS, RESET, PORTS };
enum { SLEEP_ENABLE = 1 << 5, SLEEP_TYPE_SHIFT = 2, SLEEP_TYPE_MASK = 7 };

struct power {
    struct machine *machine;
    uint8_t off_type, reset_value;
};

static uint64_t power_read(void *device, uint64_t offset, uint32_t size) {
    (void)device, (void)offset, (void)size;
    return 0; /* No sleep has ended. */
}

/* Checked: a byte to one of the registers, the enable bit, and the one sleep type there is. */
static void power_write(void *device, uint64_t offset, uint64_t value, uint32_t size) {
    struct power *power = device;
    if (size != 1)
        return;
    if (offset == SLEEP_CONTROL && (value & SLEEP_ENABLE) &&
        ((value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK) == power->off_type)
        machine_set_power(power->machine, MACHINE_OFF);
    else if (offset == RESET && value == power->reset_value)
        machine_set_power(power->machine, MACHINE_RESET);
}

int power_add(struct machine *machine, uint16_t port, uint8_t off_type, uint8_t reset_value) {
    struct power *power = calloc(1, sizeof *power);
    if (!power)
        return -ENOMEM;
    *power = (struct power){machine, off_type, reset_value};
    struct bus_range ports = {
        .address = port, .size = PORTS, .read = power_read, .write = power_write, .device = power,
    };
    struct machine_device device = {.name = "power", .device = power, .close = free};
    int error = bus_add(&machine->ports, &ports);
    if (!error && (error = machine_add(machine, &device)))
        bus_remove(&machine->ports, port);
    if (error)
        free(power);
    return error;
}
