/* power.h: ACPI's sleep and reset registers as three ports (ACPI 6.5, 4.8.3.7 and 4.8.3.6). */
#ifndef HOSTD_DEVICES_POWER_H
#define HOSTD_DEVICES_POWER_H

#include "machine.h"

/* Sleep control at `port`, sleep status at +1, reset at +2. 0 or -errno. */
int power_add(struct machine *machine, uint16_t port, uint8_t off_type, uint8_t reset_value);

#endif
