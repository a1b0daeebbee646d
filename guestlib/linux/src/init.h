/*
 * init.h: PID 1 of the initramfs, up to the agent. What it goes by lies in /hostd (docs/linux-guest.md).
 */
#ifndef LINUX_INIT_H
#define LINUX_INIT_H

/* Says a sentence, has the host told that the guest failed, and powers off. */
__attribute__((format(printf, 1, 2), noreturn)) void init_fail(const char *format, ...);

int init_main(void);

/* Host name and /etc/hosts, as /run/hostd has them. */
void set_names(void);

/* modules.c: loads what /lib/modules/order and /hostd/modules name. A module that can't be loaded is told of, no more. */
void load_modules(void);

/* root.c: mounts the root at `target` as /hostd/root says. Returns whether there is one. */
int mount_root(const char *target);
/* Makes `target` the root; returns a descriptor of the old one. free_initramfs gives that one's memory back. */
int enter_root(const char *target);
void free_initramfs(int old);

/* network.c: gives the interfaces that the file at `path` names (docs/linux-guest.md) their addresses and routes, and brings
 * them up. What can't be done is told of, no more. */
void raise_networks(const char *path);
/* Before that: interfaces that have the MAC addresses of `before`, a text as such a file has, get those of the file's lines. */
void rename_networks(const char *before, const char *path);

/* tree.c: copies a directory's content into another, over what is there; files that exist are replaced. 0 or -errno with
 * *where set to a path in static memory. */
int copy_tree(const char *from, const char *to, const char **where);
int copy_file(const char *from, const char *to, unsigned mode);

#endif
