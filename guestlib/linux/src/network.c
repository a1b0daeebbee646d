/* network.c: the guest's interfaces on its networks, as hostd's `networks` file says; no DHCP, no program of the root. */
#define _GNU_SOURCE
#include "init.h"
#include "text.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/ether.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const uint64_t INTERFACE_WAIT_NS = 2000000000;

/* One line; `address` and `gateway` are INADDR_ANY where there is none. */
struct network {
    char name[64];
    struct ether_addr mac;
    struct in_addr address, gateway;
    unsigned prefix, mtu;
};

static int parse(const char *line, struct network *network) {
    char mac[32], address[32], gateway[32];
    memset(network, 0, sizeof *network);
    if (sscanf(line, "%63s %31s %31s %u %31s", network->name, mac, address, &network->mtu, gateway) != 5 ||
        !ether_aton_r(mac, &network->mac))
        return -1;
    if (!strcmp(address, "-"))
        return 0;
    char *slash = strchr(address, '/');
    if (!slash || sscanf(slash + 1, "%u", &network->prefix) != 1 || network->prefix > 32)
        return -1;
    *slash = 0;
    if (!inet_aton(address, &network->address))
        return -1;
    return strcmp(gateway, "-") && !inet_aton(gateway, &network->gateway) ? -1 : 0;
}

/* The name of the interface with this MAC into request->ifr_name: whether there is one. */
static int find(int fd, const struct ether_addr *mac, struct ifreq *request) {
    int found = 0;
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *one = all; one && one->if_name && !found; one++) {
        memset(request, 0, sizeof *request);
        snprintf(request->ifr_name, sizeof request->ifr_name, "%s", one->if_name);
        found = !ioctl(fd, SIOCGIFHWADDR, request) && request->ifr_hwaddr.sa_family == ARPHRD_ETHER &&
                !memcmp(request->ifr_hwaddr.sa_data, mac, sizeof *mac);
    }
    if (all)
        if_freenameindex(all);
    return found;
}

static int wait_for_interface(int fd, const struct ether_addr *mac, struct ifreq *request) {
    uint64_t start = monotonic_ns();
    struct timespec nap = {.tv_nsec = 1000000};
    while (!find(fd, mac, request)) {
        if (monotonic_ns() - start > INTERFACE_WAIT_NS)
            return -1;
        nanosleep(&nap, NULL);
        if (nap.tv_nsec < 20000000)
            nap.tv_nsec *= 2;
    }
    return 0;
}

static void set_address(struct sockaddr *to, uint32_t address) {
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    memcpy(to, &inet, sizeof inet);
}

/* What could not be done, or NULL; errno says why. */
static const char *set_up(int fd, const struct network *network, struct ifreq *request) {
    request->ifr_mtu = (int)network->mtu;
    if (ioctl(fd, SIOCSIFMTU, request))
        return "its MTU";
    if (network->address.s_addr) {
        set_address(&request->ifr_addr, network->address.s_addr);
        if (ioctl(fd, SIOCSIFADDR, request))
            return "its address";
        set_address(&request->ifr_netmask, network->prefix ? htonl(~0u << (32 - network->prefix)) : 0);
        if (ioctl(fd, SIOCSIFNETMASK, request))
            return "its subnet";
    }
    if (ioctl(fd, SIOCGIFFLAGS, request))
        return "its flags";
    request->ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, request))
        return "it can't be brought up";
    if (network->gateway.s_addr) {
        struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = request->ifr_name};
        set_address(&route.rt_dst, INADDR_ANY);
        set_address(&route.rt_genmask, INADDR_ANY);
        set_address(&route.rt_gateway, network->gateway.s_addr);
        if (ioctl(fd, SIOCADDRT, &route) && errno != EEXIST)
            return "the route to its gateway";
    }
    return NULL;
}

/* Down, so that the address may change and old routes go. */
static int give_mac(int fd, const struct ether_addr *mac, struct ifreq *request) {
    struct ifreq change = *request;
    if (ioctl(fd, SIOCGIFFLAGS, &change))
        return -1;
    change.ifr_flags &= ~(IFF_UP | IFF_RUNNING);
    if (ioctl(fd, SIOCSIFFLAGS, &change))
        return -1;
    change.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(change.ifr_hwaddr.sa_data, mac, sizeof *mac);
    return ioctl(fd, SIOCSIFHWADDR, &change);
}

void rename_networks(const char *before, const char *path) {
    char *old = strdup(before), *text = NULL, *old_rest = old, *rest, *line;
    struct network was, is;
    struct ifreq request;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && old && read_whole(path, &text) >= 0) {
        rest = text;
        while ((line = strsep(&old_rest, "\n")) && rest) {
            char *now = strsep(&rest, "\n");
            if (parse(line, &was) || parse(now, &is) || !find(fd, &was.mac, &request))
                continue;
            if (give_mac(fd, &is.mac, &request))
                say("network %s: %s: its MAC address: %s", is.name, request.ifr_name, strerror(errno));
        }
    }
    if (fd >= 0)
        close(fd);
    free(old);
    free(text);
}

void raise_networks(const char *path) {
    char *text, *rest;
    struct network network;
    struct ifreq request;
    if (read_whole(path, &text) < 0)
        return;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        say("init: networks: %s", strerror(errno));
    rest = text;
    for (char *line; fd >= 0 && (line = strsep(&rest, "\n"));) {
        trim(line);
        if (!*line)
            continue;
        if (parse(line, &network)) {
            say("init: %s: not NETWORK MAC ADDRESS/PREFIX|- MTU GATEWAY|-: %s", path, line);
            continue;
        }
        if (wait_for_interface(fd, &network.mac, &request)) {
            say("init: network %s: no interface has its MAC address; is its driver's module in the initramfs?", network.name);
            continue;
        }
        const char *failed = set_up(fd, &network, &request);
        if (failed)
            say("init: network %s: %s: %s: %s", network.name, request.ifr_name, failed, strerror(errno));
    }
    if (fd >= 0)
        close(fd);
    free(text);
}
