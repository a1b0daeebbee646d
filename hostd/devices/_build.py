"""cffi build script of `hostd.devices._devices`: the machine's buses and its devices."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# A new device: its C file here, its header and its functions below.
SOURCES = [
    "bus.c",
    "state.c",
    "interrupts.c",
    "recorder.c",
    "loop.c",
    "machine.c",
    "pci.c",
    "bars.c",
    "msix.c",
    "terminal.c",
    "serial.c",
    "power.c",
    "ivshmem.c",
    "virtio/virtqueue.c",
    "virtio/device.c",
    "virtio/common_cfg.c",
    "virtio/transport.c",
    "virtio/rng.c",
    "virtio/blk.c",
    "virtio/pmem.c",
    "virtio/balloon.c",
    "virtio/console.c",
    "virtio/console_control.c",
    "virtio/net.c",
    "virtio/vhost_front.c",
    "virtio/vhost_link.c",
    "virtio/vhost_tell.c",
]
HEADERS = ["machine.h", "terminal.h", "serial.h", "power.h", "ivshmem.h"]
VIRTIO_HEADERS = ["transport.h", "rng.h", "blk.h", "pmem.h", "balloon.h", "console.h", "net.h"]

MACHINE = """
    struct interrupt_record { uint32_t kind, on; uint64_t number, address; int64_t fd; };
    struct interrupt_recorder { uint64_t count; struct interrupt_record records[...]; ...; };
    struct bus_range { uint64_t address, size, accesses; ...; };
    struct bus { uint32_t count; struct bus_range ranges[...]; uint64_t unclaimed; ...; };
    struct loop { uint64_t wakes, calls; ...; };
    struct kvm_interrupts { uint64_t messages, lines, routings; ...; };
    enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_REGISTERS, PCI_BAR_MEMORY, ... };
    struct pci_bar { enum pci_bar_kind kind; uint32_t flags; uint64_t size, address, mapped; ...; };
    struct msix { uint32_t count; int enabled, masked; uint64_t sent, held; ...; };
    struct pci_ops { const char *name; ...; };
    struct pci_device {
        const struct pci_ops *ops; uint32_t slot; char name[...]; uint8_t config[...];
        struct pci_bar bars[...]; struct msix msix; ...;
    };
    struct pci { uint32_t count; struct pci_device *devices[...]; uint64_t moves, bad_moves; ...; };
    struct machine {
        struct bus ports, mmio; struct pci pci; struct loop loop; uint32_t power; struct kvm_interrupts kvm;
        struct interrupt_recorder *recorder; uint64_t port_exits, mmio_exits; ...;
    };
    enum machine_space { MACHINE_PORTS, MACHINE_MMIO, ... };
    enum machine_power { MACHINE_ON, MACHINE_OFF, MACHINE_RESET, ... };
    struct pci_place {
        uint64_t ecam; uint16_t config_port; uint64_t low_start, low_end, high_start, high_end;
        uint32_t first_gsi, gsis;
    };
    struct machine_move { uint32_t slot, bar; uint64_t size, from, to; };
    struct slot_rows;
    struct machine *machine_new(struct slot_rows *memory, int vm_fd, const struct pci_place *place);
    void machine_free(struct machine *machine);
    int machine_start(struct machine *machine);
    void machine_stop(struct machine *machine);
    int machine_exit(void *machine, struct kvm_run *run);
    int machine_access(
        struct machine *machine, enum machine_space space, uint64_t address, void *data, uint32_t size, int write);
    #define STATE_WHY ...
    void machine_hold(struct machine *machine);
    int machine_release(struct machine *machine);
    int64_t machine_save(struct machine *machine, uint8_t *to, uint64_t room, char *why);
    int machine_restore(struct machine *machine, const uint8_t *from, uint64_t size, char *why);
    uint32_t machine_moves(struct machine *machine, struct machine_move *moves, uint32_t room);
    void machine_moved(struct machine *machine, uint32_t slot, uint32_t bar, uint64_t address);
    int loop_once(struct loop *loop, int timeout_ms);
    int pci_start(struct pci *pci);
    void msix_raise(struct pci_device *device, uint32_t vector);
    void pci_intx(struct pci_device *device, int level);
"""

DEVICES = """
    struct terminal { uint64_t written, lost, log_size; char panic[...]; ...; };
    int terminal_open(
        struct terminal *terminal, struct loop *loop, int log_fd, const char *log_path, uint64_t log_limit,
        const char *socket_path);
    void terminal_close(struct terminal *terminal);
    int serial_add(struct machine *machine, uint16_t port, uint32_t gsi, struct terminal *terminal);
    int power_add(struct machine *machine, uint16_t port, uint8_t off_type, uint8_t reset_value);
    struct ivshmem_peer { uint16_t peer, vector; int fd; };
    struct ivshmem_config {
        const char *name; uint64_t size; uint16_t position; const int *vectors; uint32_t vector_count;
        const int *bells; uint32_t bell_count; const struct ivshmem_peer *peers; uint32_t peer_count;
    };
    struct ivshmem_counters { uint64_t rings, unknown, interrupts; };
    void ivshmem_count(struct machine *machine, uint32_t slot, struct ivshmem_counters *counters);
    int ivshmem_add(struct machine *machine, const struct ivshmem_config *config);
"""

VIRTIO = """
    #define VQ_ERRORS ...
    #define BLK_SERIAL ...
    #define CONSOLE_PORTS ...
    #define CONSOLE_NAME ...
    #define BALLOON_RANGES ...
    #define BALLOON_STATISTICS ...
    const char *virtqueue_reason(int error);
    struct virtqueue {
        uint16_t size, max, vector; uint8_t enabled; uint64_t kicks, chains, interrupts, suppressed; ...;
    };
    struct virtio_ops { const char *name; uint16_t id; ...; };
    struct virtio_device {
        const struct virtio_ops *ops; uint64_t offered, accepted; uint8_t status, broken; uint32_t queue_count;
        struct virtqueue *queues; uint64_t resets, breaks; uint64_t errors[...]; ...;
    };
    int virtio_pci_add(struct machine *machine, struct virtio_device *device, const char *name, int own_thread);
    struct virtio_device *virtio_pci_device(struct machine *machine, uint32_t slot);
    int virtio_pci_once(struct machine *machine, uint32_t slot, int timeout_ms);

    struct virtio_rng { struct virtio_device device; uint64_t bytes; ...; };
    struct virtio_rng *virtio_rng_new(struct slot_rows *memory);

    enum blk_access { BLK_READ_ONLY, BLK_SHARED, BLK_PRIVATE };
    struct virtio_blk {
        struct virtio_device device; int overlay_fd; uint64_t sectors, *written;
        uint64_t reads, writes, flushes, discards, refused, failed, read_bytes, written_bytes; ...;
    };
    struct virtio_blk *virtio_blk_new(struct slot_rows *memory, int fd, uint64_t size, enum blk_access access,
                                      int overlay_fd, const char *serial, uint32_t block_size);

    struct virtio_pmem { struct virtio_device device; uint64_t flushes, failed; ...; };
    struct virtio_pmem *virtio_pmem_new(struct slot_rows *memory, int fd, uint64_t start, uint64_t size);

    struct virtio_balloon {
        struct virtio_device device; uint64_t statistics_count, inflated, deflated, reported, released, refused; ...;
    };
    struct virtio_balloon *virtio_balloon_new(struct slot_rows *memory, int deflate_on_oom);
    int virtio_balloon_allow(struct virtio_balloon *balloon, uintptr_t hva, uint64_t size, int advice);
    void virtio_balloon_target(struct virtio_balloon *balloon, uint32_t pages);
    uint32_t virtio_balloon_actual(struct virtio_balloon *balloon);
    int virtio_balloon_poll(struct virtio_balloon *balloon);
    uint64_t virtio_balloon_statistics(struct virtio_balloon *balloon, uint64_t *to);

    struct console_port {
        char name[...]; uint8_t exists, ready, guest_open, told_open;
        uint64_t to_guest, to_host, dropped, clients; ...;
    };
    struct virtio_console { struct virtio_device device; uint32_t count; struct console_port ports[...]; ...; };
    struct virtio_console *virtio_console_new(struct slot_rows *memory, uint32_t count);
    int virtio_console_port(struct virtio_console *console, uint32_t index, const char *name, int listener);
    int virtio_console_terminal(struct virtio_console *console, const char *name, struct terminal *terminal);

    #define NET_PAIRS ...
    #define VHOST_SHARES ...
    #define VHOST_PATH ...
    struct vhost_share { uint64_t gpa, size, offset; int fd; };
    struct vhost_front { int patience_ms, rest_ms; ...; };
    struct virtio_net { struct virtio_device device; struct vhost_front front; ...; };
    struct virtio_net_setup {
        const char *path; uint8_t mac[6]; uint16_t mtu; uint32_t pairs;
        const struct vhost_share *shares; uint32_t share_count;
    };
    struct virtio_net_view {
        const char *state; char reason[...]; uint64_t offered; uint32_t shown, active;
        uint64_t connections, reconnects, lost, failures, queue_errors, commands, refused;
    };
    struct virtio_net *virtio_net_new(struct slot_rows *memory, const struct virtio_net_setup *setup);
    void virtio_net_connect(struct virtio_net *net, int patience_ms);
    void virtio_net_look(struct virtio_net *net, struct virtio_net_view *view);
"""

ffibuilder = FFI()
ffibuilder.cdef("struct kvm_run;\n" + MACHINE + DEVICES + VIRTIO)
ffibuilder.set_source(
    "hostd.devices._devices",
    "".join(f'#include "{header}"\n' for header in HEADERS + VIRTIO_HEADERS),
    sources=[str(HERE / name) for name in SOURCES],
    include_dirs=[str(HERE), str(HERE / "virtio"), str(ROOT / "hostd/memory"), str(ROOT / "hostd/kvm")],
    depends=[str(path) for path in sorted(HERE.glob("**/*.h"))],
    libraries=["pthread"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
)
