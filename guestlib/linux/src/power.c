/* power.c: the orderly end of all processes and file systems. */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <mntent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Reaps until no process is left or the time is over. */
static void reap_until(uint64_t deadline_ns) {
    const struct timespec moment = {.tv_nsec = 5000000};
    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0 && errno == ECHILD)
            return; /* Orphans become PID 1's children: it has none left, so nothing runs any more. */
        if (pid > 0)
            continue;
        if (monotonic_ns() >= deadline_ns)
            return;
        nanosleep(&moment, NULL);
    }
}

static void unmount_all(void) {
    char *targets[256];
    int count = 0;
    FILE *mounts = setmntent("/proc/self/mounts", "r");
    if (!mounts)
        return;
    for (struct mntent *entry; count < 256 && (entry = getmntent(mounts));)
        targets[count++] = strdup(entry->mnt_dir);
    endmntent(mounts);
    while (count--) { /* What was mounted last goes first. */
        if (targets[count] && (umount2(targets[count], 0) || !strcmp(targets[count], "/")))
            mount(NULL, targets[count], NULL, MS_REMOUNT | MS_RDONLY, NULL);
        free(targets[count]);
    }
}

static void ask_init(uint32_t how, uint32_t grace_ms) {
    const struct timespec moment = {.tv_nsec = 20000000};
    uint64_t deadline = monotonic_ns() + grace_ms * 1000000ull;
    if (!access("/run/systemd/system", F_OK)) {
        kill(1, SIGRTMIN + (how == AGENT_REBOOT ? 5 : 4)); /* systemd(1), SIGNALS */
    } else {
        const char *step;
        char *argv[] = {how == AGENT_REBOOT ? "reboot" : "poweroff", NULL};
        char **envp = environment(NULL, 0, 1);
        const int fds[3] = {STDOUT_FILENO, STDOUT_FILENO, STDERR_FILENO};
        if (!envp || spawn(argv, envp, "", fds, 0, 0, 0, &step) < 0)
            kill(1, how == AGENT_REBOOT ? SIGTERM : SIGUSR2); /* busybox init */
        free(envp);
    }
    while (monotonic_ns() < deadline)
        nanosleep(&moment, NULL);
    say("the guest's init did not go down within %u ms", grace_ms);
}

void power_down(uint32_t how, uint32_t grace_ms) {
    if (getpid() != 1)
        ask_init(how, grace_ms);
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    reap_until(monotonic_ns() + grace_ms * 1000000ull);
    kill(-1, SIGKILL);
    reap_until(monotonic_ns() + 500000000);
    sync();
    unmount_all();
    reboot(how == AGENT_REBOOT ? RB_AUTOBOOT : RB_POWER_OFF);
    say("the machine cannot be %s: %s", how == AGENT_REBOOT ? "rebooted" : "powered off", strerror(errno));
    for (;;)
        pause();
}
