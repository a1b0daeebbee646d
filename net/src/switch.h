/*
 * switch.h: an Ethernet switch. One thread forwards (switch_run); others change it and look at it under its lock.
 *
 * It looks at the ports in turn, takes a batch of frames of each, finds each frame's way by its addresses, copies it once,
 * from the sender's memory to the receiver's, and publishes what each receiver got after the batch. Where nothing has come for
 * `spin` it arms all ports and sleeps until one of their descriptors wakes it.
 */
#ifndef NET_SWITCH_H
#define NET_SWITCH_H

#include "port.h"

#define SWITCH_PORTS 1024

struct net_switch;

struct switch_config {
    uint32_t mtu;        /* 68 to 65535 */
    uint32_t age;        /* seconds after which an address that was not heard is forgotten */
    uint32_t addresses;  /* how many are remembered at most; the oldest goes */
    uint32_t spin;       /* microseconds of looking before it sleeps */
};

struct switch_address { uint8_t mac[6]; uint16_t vlan; uint32_t port; uint64_t age_ns; };

/* NULL with errno. */
struct net_switch *switch_new(const struct switch_config *config);
/* Closes all ports; nobody runs it any more. */
void switch_free(struct net_switch *sw);

/* Forwards until switch_stop. Holds the lock but while it sleeps and between two rounds when somebody waits for it. 0 or -errno. */
int switch_run(struct net_switch *sw);
void switch_stop(struct net_switch *sw);

/* For those who change ports from another thread. The forwarding thread lets them in within a round. */
void switch_lock(struct net_switch *sw);
void switch_unlock(struct net_switch *sw);
/* As switch_lock, but waits `ns` at most: 0 or -ETIMEDOUT. For a thread of a port's own, which the port's close waits for. */
int switch_lock_within(struct net_switch *sw, int64_t ns);

/* All below: under the lock, or before switch_run. */

/* Takes the port over (it is closed by switch_remove, switch_free): its id, or -errno (ENOSPC; EEXIST for a name, EADDRINUSE for
 * a fixed MAC that another port has). */
int64_t switch_add(struct net_switch *sw, struct port *port);
/* Closes it and forgets its addresses: 0 or -ENOENT. */
int switch_remove(struct net_switch *sw, uint32_t id);
struct port *switch_port(struct net_switch *sw, uint32_t id);   /* or NULL */
uint32_t switch_ports(struct net_switch *sw, struct port **ports, uint32_t room);
uint32_t switch_addresses(struct net_switch *sw, struct switch_address *found, uint32_t room);
/* A port's `wake`, `up` or flags have changed. */
void switch_port_changed(struct net_switch *sw, struct port *port);
void switch_quarantine(struct net_switch *sw, struct port *port, enum port_error error, const char *field);

/*
 * The same for callers who may be held up at any moment (Python, by its interpreter): the lock is taken and given back inside.
 * switch_look copies the ports as they are.
 */
int64_t switch_join(struct net_switch *sw, struct port *port);
int switch_leave(struct net_switch *sw, uint32_t id);
uint32_t switch_look(struct net_switch *sw, struct port *copies, uint32_t room);
uint32_t switch_heard(struct net_switch *sw, struct switch_address *found, uint32_t room);

/*
 * Who sees every frame that is forwarded: once, as it came in, with the ports it came from and (NULL if to many) went to; those
 * that follow one another and have the same Ethernet header together. Called by the forwarding thread; must not block. NULL
 * ends it.
 */
typedef void switch_tap(void *context, const struct frame *frames, int count, const struct port *from, const struct port *to);
void switch_set_tap(struct net_switch *sw, switch_tap *tap, void *context);

/*
 * Memory that a peer gave and may take away (a file cut short): between guard and unguard an access beyond its end reads zeros
 * and sets *lost, instead of ending the process by SIGBUS. From any thread. 0 or -errno.
 */
int fault_guard(void *start, uint64_t size, uint32_t *lost);
void fault_unguard(void *start);

#endif
