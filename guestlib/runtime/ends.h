/* ends.h: channels for the rest of the runtime. Not for programs. */
#ifndef ENDS_H
#define ENDS_H

#include "channel.h"

/* As channel_open, for an end that the info area describes. */
int channel_open_end(struct channel *channel, const struct guest_channel *end);

#endif
