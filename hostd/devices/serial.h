/* serial.h: a 16550A UART (National Semiconductor PC16550D data sheet) on eight ports. */
#ifndef HOSTD_DEVICES_SERIAL_H
#define HOSTD_DEVICES_SERIAL_H

#include "machine.h"
#include "terminal.h"

/* Adds it at `port` with the edge-triggered line `gsi`. The terminal outlives it. 0 or -errno. */
int serial_add(struct machine *machine, uint16_t port, uint32_t gsi, struct terminal *terminal);

#endif
