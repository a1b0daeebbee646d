/* init.c: see init.h. */
#define _GNU_SOURCE
#include "init.h"
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define AGENT HOSTD_RUN "/agent"
#define ROOT "/newroot"

void init_fail(const char *format, ...) {
    char text[900];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    say("init: %s", text);
    if (getpid() != 1)
        exit(1);
    /* The agent's part tells the host, if it can, and powers off. */
    agent_run(AGENT_PORT, -1, HOSTD_RUN, 1);
    abort();
}

/* ---- what a system has before anything else ---------------------------------------------------------------------------- */

static void mount_system(void) {
    static const struct {
        const char *kind, *place, *data;
        unsigned long flags;
    } mounts[] = {
        {"proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
        {"sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
        {"devtmpfs", "/dev", "mode=755", MS_NOSUID},
        {"tmpfs", "/run", "mode=755", MS_NOSUID | MS_NODEV},
    };
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        mkdir(mounts[i].place, 0755);
        /* EBUSY: the kernel mounted it (CONFIG_DEVTMPFS_MOUNT is for other roots, but may be patched in). */
        if (mount(mounts[i].kind, mounts[i].place, mounts[i].kind, mounts[i].flags, mounts[i].data) && errno != EBUSY)
            init_fail("%s cannot be mounted: %s", mounts[i].place, strerror(errno));
    }
}

/* What programs expect beside that; a root that lacks it goes without. */
static void mount_comforts(void) {
    mkdir("/dev/pts", 0755);
    mkdir("/dev/shm", 01777);
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666");
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    if (symlink("/proc/self/fd", "/dev/fd") == 0) {
        if (symlink("/proc/self/fd/0", "/dev/stdin") || symlink("/proc/self/fd/1", "/dev/stdout") ||
            symlink("/proc/self/fd/2", "/dev/stderr"))
            say("init: /dev/stdin, stdout and stderr: %s", strerror(errno));
    }
}

static void open_console(void) {
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    for (int i = 0; fd >= 0 && i < 3; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
}

static void raise_loopback(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
        say("init: the loopback interface: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* ---- what hostd handed over -------------------------------------------------------------------------------------------- */

/* /hostd without files/ goes to /run/hostd: small, and there for good. */
static void keep_handover(void) {
    const char *where;
    mkdir(HOSTD_RUN, 0755);
    if (!access("/hostd/files", F_OK) && rename("/hostd/files", "/hostd.files"))
        init_fail("/hostd/files: %s", strerror(errno));
    int error = copy_tree("/hostd", HOSTD_RUN, &where);
    if (error && error != -ENOENT)
        init_fail("%s cannot be written: %s", where, strerror(-error));
    error = copy_file("/proc/self/exe", AGENT, 0755);
    if (error)
        init_fail("%s cannot be written: %s", AGENT, strerror(-error));
    if (symlink("agent", HOSTD_RUN "/guestctl") && errno != EEXIST)
        say("init: %s/guestctl: %s", HOSTD_RUN, strerror(errno));
}

/* In the new root already, so that its links lead where they do later. `old`: the initramfs, or -1 in it. */
static void place_files(int old) {
    char from[64] = "/hostd.files";
    const char *where;
    if (old >= 0)
        snprintf(from, sizeof from, "/proc/self/fd/%d/hostd.files", old);
    if (access(from, F_OK))
        return;
    int error = copy_tree(from, "/", &where);
    if (error)
        init_fail("%s cannot be written: %s%s", where, strerror(-error),
                  error == -EROFS ? "; files need a root with an overlay, or one that is writable" : "");
}

static void write_text(const char *path, const char *text, int flags) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
    int error = fd < 0 ? -errno : write_all(fd, text, strlen(text));
    if (error && error != -EROFS && error != -ENOENT)
        say("init: %s: %s", path, strerror(-error));
    if (fd >= 0)
        close(fd);
}

/* Names: the host's, and those of /hostd/hosts. A root that is read-only keeps its own. */
void set_names(void) {
    char name[65] = "guest", line[256], *hosts;
    if (read_small(HOSTD_RUN "/name", name, sizeof name) >= 0)
        trim(name);
    if (sethostname(name, strlen(name)))
        say("init: the host name %s: %s", name, strerror(errno));
    mkdir("/etc", 0755);
    snprintf(line, sizeof line, "%s\n", name);
    write_text("/etc/hostname", line, O_TRUNC);
    if (read_whole(HOSTD_RUN "/hosts", &hosts) >= 0) {
        write_text("/etc/hosts", hosts, O_TRUNC);
        free(hosts);
    } else {
        snprintf(line, sizeof line, "127.0.0.1 localhost %s\n", name);
        write_text("/etc/hosts", line, O_TRUNC);
    }
    write_text("/etc/hosts", "::1 localhost ip6-localhost ip6-loopback\n", O_APPEND);
}

/* ---- the next PID 1 ---------------------------------------------------------------------------------------------------- */

_Noreturn static void become_next(void) {
    char program[1024];
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("TERM", "linux", 1);
    if (read_small(HOSTD_RUN "/init", program, sizeof program) < 0) {
        execl(AGENT, "agent", (char *)NULL);
        init_fail("%s cannot be started: %s", AGENT, strerror(errno));
    }
    trim(program);
    if (access(program, X_OK))
        init_fail("the guest's init %s: %s", program, strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        execl(AGENT, "agent", (char *)NULL);
        _exit(127);
    }
    execl(program, program, (char *)NULL);
    init_fail("the guest's init %s cannot be started: %s", program, strerror(errno));
}

int init_main(void) {
    say("init");
    if (getpid() != 1) {
        say("init: this is for PID 1 of an initramfs");
        return 2;
    }
    mount_system();
    open_console();
    keep_handover();
    load_modules();
    int old = mount_root(ROOT) ? enter_root(ROOT) : -1;
    place_files(old);
    if (old >= 0)
        free_initramfs(old);
    mount_comforts();
    set_names();
    raise_loopback();
    raise_networks(HOSTD_RUN "/networks");
    become_next();
}
