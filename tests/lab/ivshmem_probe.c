/*
 * ivshmem_probe.c: PID 1 of a Linux guest that uses an ivshmem device with nothing but what a stock kernel has: sysfs files
 * and uio_pci_generic. Arguments on the kernel's command line, behind "--": PCI address, own peer, how many interrupts.
 *
 * Lines on the console, for the test: "probe: WORD...".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MASK, STATUS, POSITION, DOORBELL };

static char device[128];

static void finish(void) {
    fflush(NULL);
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void fail(const char *what) {
    printf("probe: failed %s: %s\n", what, strerror(errno));
    finish();
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail(path);
    close(fd);
}

static void load(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0)
        fail(path);
    close(fd);
}

static volatile void *resource(int number, size_t size) {
    char path[160];
    snprintf(path, sizeof path, "%s/resource%d", device, number);
    int fd = open(path, O_RDWR | O_SYNC);
    if (fd < 0)
        fail(path);
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        fail(path);
    close(fd);
    return at;
}

static void show_lspci(void) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/lspci", "lspci", "-nnvvv", "-s", device + strlen("/sys/bus/pci/devices/"), NULL);
        _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    printf("probe: lspci %d\n", WEXITSTATUS(status));
}

static int open_uio(void) {
    char path[300];
    struct dirent *entry;
    put("/sys/bus/pci/drivers/uio_pci_generic/new_id", "1af4 1110");
    snprintf(path, sizeof path, "%s/uio", device);
    DIR *directory = opendir(path);
    if (!directory)
        fail(path);
    while ((entry = readdir(directory)) && entry->d_name[0] == '.')
        ;
    if (!entry)
        fail("uio");
    snprintf(path, sizeof path, "/dev/%s", entry->d_name);
    int fd = open(path, O_RDWR);
    if (fd < 0)
        fail(path);
    closedir(directory);
    return fd;
}

/* The driver's handler has masked the line in COMMAND (bit 10); the program allows it again. */
static void allow_line(void) {
    char path[160];
    uint8_t high;
    snprintf(path, sizeof path, "%s/config", device);
    int fd = open(path, O_RDWR);
    if (fd < 0 || pread(fd, &high, 1, 5) != 1)
        fail(path);
    high &= (uint8_t)~4;
    if (pwrite(fd, &high, 1, 5) != 1)
        fail(path);
    close(fd);
}

static void wait_interrupt(int uio, volatile uint32_t *registers, int number) {
    uint32_t count;
    struct pollfd wanted = {.fd = uio, .events = POLLIN};
    if (poll(&wanted, 1, 30000) != 1 || read(uio, &count, sizeof count) != sizeof count) {
        errno = ETIMEDOUT;
        fail("waiting");
    }
    printf("probe: interrupt %d status %u\n", number, registers[STATUS]);
    allow_line();
}

int main(int argc, char **argv) {
    if (argc != 4)
        finish();
    int interrupts = atoi(argv[3]);
    uint32_t own = (uint32_t)atoi(argv[2]);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    snprintf(device, sizeof device, "/sys/bus/pci/devices/%s", argv[1]);
    load("/uio.ko");
    load("/uio_pci_generic.ko");
    show_lspci();
    volatile uint32_t *registers = resource(0, 4096);
    volatile char *region = resource(2, 8192);
    printf("probe: position %u\n", registers[POSITION]);
    printf("probe: region %.64s\n", (const char *)region);
    strcpy((char *)region + 4096, "written by the guest");
    int uio = open_uio();
    (void)registers[STATUS];
    allow_line();
    for (int i = 0; i < interrupts; i++) {
        registers[DOORBELL] = 0 << 16 | 0; /* The region's first bell: the host waits there, then rings back. */
        wait_interrupt(uio, registers, i);
    }
    registers[DOORBELL] = own << 16 | 0; /* To itself. */
    wait_interrupt(uio, registers, interrupts);
    registers[DOORBELL] = 0xffffffff;    /* To nobody. */
    printf("probe: done\n");
    finish();
}
