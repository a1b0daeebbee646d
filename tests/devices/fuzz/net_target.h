/* net_target.h: the network card as a target, with a back end that lies. */
#ifndef HOSTD_FUZZ_NET_TARGET_H
#define HOSTD_FUZZ_NET_TARGET_H

#include "targets.h"

void make_net(struct bench *bench);
uint32_t request_net(struct bench *bench, struct segment *segments, uint32_t *queue);
void host_net(struct bench *bench);
int prove_net(struct bench *bench);

/* The back end goes, with all that it was given. */
void peer_close(void);

#endif
