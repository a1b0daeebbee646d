"""cffi build script of `net._net`: the switch and its ports."""

from __future__ import annotations

import runpy
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

# A new part: its C file here, its header and its functions below.
SOURCES = [
    "switch.c",
    "forward.c",
    "addresses.c",
    "faults.c",
    "frame.c",
    "offload.c",
    "ring_port.c",
    "vring.c",
    "vhost_memory.c",
    "vhost_frames.c",
    "vhost_socket.c",
    "vhost_user.c",
    "vhost_port.c",
    "kernel_frame.c",
    "packet_port.c",
    "tap_port.c",
    "capture.c",
]
HEADERS = ["switch.h", "ring_port.h", "vhost_port.h", "packet_port.h", "tap_port.h", "capture.h"]

NUMBERS = (
    "FRAME_MAX SWITCH_PORTS PORT_NAME PORT_ERRORS DROPS CAPTURES CAPTURE_TERMS CAPTURE_MANY "
    "PORT_UPLINK PORT_ISOLATED PORT_FIXED_MAC PORT_TAKES_CSUM PORT_TAKES_TSO4 PORT_TAKES_TSO6 PORT_TAKES_USO"
)

SWITCH = """
    struct port_counters {
        uint64_t frames_in, bytes_in, frames_out, bytes_out; uint64_t drops[...]; uint64_t wakes, missed; ...;
    };
    struct port_ops { const char *kind; ...; };
    struct port {
        const struct port_ops *ops; char name[...]; uint32_t id, flags; uint8_t mac[6]; uint8_t up, quarantined;
        const char *field; uint64_t rate; struct port_counters counters; ...;
    };
    const char *port_error_name(int error);
    const char *drop_name(int drop);

    struct switch_config { uint32_t mtu, age, addresses, spin; };
    struct switch_address { uint8_t mac[6]; uint16_t vlan; uint32_t port; uint64_t age_ns; };
    struct net_switch *switch_new(const struct switch_config *config);
    void switch_free(struct net_switch *sw);
    int switch_run(struct net_switch *sw);
    void switch_stop(struct net_switch *sw);
    int64_t switch_join(struct net_switch *sw, struct port *port);
    int switch_leave(struct net_switch *sw, uint32_t id);
    uint32_t switch_look(struct net_switch *sw, struct port *copies, uint32_t room);
    uint32_t switch_heard(struct net_switch *sw, struct switch_address *found, uint32_t room);
    void port_close(struct port *port);
"""

PORTS = """
    struct port *ring_port_new(const char *name, void *region, uint64_t size, const struct shm_config *out,
                               const struct shm_config *in, const int *bells, uint32_t bell_count, const char **field);

    struct vhost_info {
        uint64_t features, protocol, sessions; uint64_t errors[...]; uint32_t regions, receive, transmit;
        uint8_t connected;
    };
    struct port *vhost_port_new(const char *name, const char *path, struct net_switch *sw);
    void vhost_port_offloads(struct port *port, int offloads);
    void vhost_port_info(const struct port *port, struct vhost_info *info);

    struct port *packet_port_new(const char *name, const char *interface);
    struct port *tap_port_new(const char *name, const char *interface);
"""

CAPTURE = """
    struct capture_filter {
        uint32_t by_port, by_mac, port_count, mac_count; uint32_t ports[...]; uint8_t macs[...][6];
    };
    struct capture_counters { uint64_t frames, bytes, lost; uint32_t broken; const char *field; };
    struct captures *captures_new(struct net_switch *sw);
    void captures_free(struct captures *captures);
    struct capture *capture_add(struct captures *captures, void *region, uint64_t size, const struct shm_config *ring,
                                const struct capture_filter *filter, uint32_t snap, const char **field);
    void capture_remove(struct captures *captures, struct capture *capture);
    void capture_set_ports(struct captures *captures, struct capture *capture, const uint32_t *ports, uint32_t count);
    void capture_look(struct captures *captures, const struct capture *capture, struct capture_counters *counters);
"""

FRONT = """
    int front_look(struct net_switch *sw, uint32_t id, struct vhost_info *info);
"""

# Names of errors are asked for by number, and a port that no switch took is closed by its own op.
GLUE = """
static void port_close(struct port *port) { port->ops->close(port); }

/* What is known of a vhost-user port's front end: 1, or 0 if no port, or one of another kind, has that number. */
static int front_look(struct net_switch *sw, uint32_t id, struct vhost_info *info) {
    switch_lock(sw);
    const struct port *port = switch_port(sw, id);
    int found = port && !strcmp(port->ops->kind, "vhost-user");
    if (found)
        vhost_port_info(port, info);
    switch_unlock(sw);
    return found;
}
"""

ffibuilder = FFI()
ffibuilder.include(runpy.run_path(str(HERE.parent / "shm" / "_build.py"))["ffibuilder"])  # struct shm_config
ffibuilder.cdef("".join(f"#define {name} ...\n" for name in NUMBERS.split()) + SWITCH + PORTS + CAPTURE + FRONT)
ffibuilder.set_source(
    "net._net",
    '#include <string.h>\n#include "end.h"\n#include "loops.h"\n'
    + "".join(f'#include "{name}"\n' for name in HEADERS)
    + GLUE,
    sources=[str(HERE / "src" / name) for name in SOURCES],
    include_dirs=[str(HERE / "src"), str(HERE.parent / "shm" / "include"), str(HERE.parent / "shm" / "src")],
    depends=[str(path) for path in sorted((HERE / "src").glob("*.h"))],
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror"],
)
