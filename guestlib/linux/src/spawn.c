/* spawn.c: starting a program, and what it is told when that fails. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const char *const DEFAULTS[] = {
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "TERM=linux",
};
#define DEFAULT_COUNT (sizeof DEFAULTS / sizeof *DEFAULTS)

char **environment(char **given, size_t count, int defaults) {
    char **list = calloc(count + DEFAULT_COUNT + 1, sizeof *list);
    if (!list)
        return NULL;
    size_t size = 0;
    for (size_t i = 0; i < count; i++)
        list[size++] = given[i];
    for (size_t i = 0; defaults && i < DEFAULT_COUNT; i++) {
        size_t name = (size_t)(strchr(DEFAULTS[i], '=') - DEFAULTS[i]) + 1, known = 0;
        for (size_t j = 0; j < count; j++)
            known |= !strncmp(given[j], DEFAULTS[i], name);
        if (!known)
            list[size++] = (char *)DEFAULTS[i];
    }
    return list;
}

enum step { STEP_EXEC, STEP_FOLDER, STEP_TERMINAL, STEP_USER };
static const char *const STEPS[] = {"", "its working directory: ", "its terminal: ", "its user: "};

struct failure {
    int error;
    enum step step;
};

/* The child's side, up to the new program. Returns what went wrong. */
static enum step become(char **argv, char **envp, const char *cwd, const int fds[3], int tty, uint32_t uid, uint32_t gid) {
    sigset_t none;
    sigemptyset(&none);
    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    /* Out of the way first: one of them may be 0, 1 or 2 itself. */
    int moved[3];
    for (int i = 0; i < 3; i++)
        moved[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
    for (int i = 0; i < 3; i++)
        if (dup2(moved[i], i) < 0)
            return STEP_TERMINAL;
    if (tty && ioctl(0, TIOCSCTTY, 0))
        return STEP_TERMINAL;
    if (uid || gid) {
        gid_t group = gid;
        if (setgroups(1, &group) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
            return STEP_USER;
    }
    if (chdir(*cwd ? cwd : "/"))
        return STEP_FOLDER;
    environ = envp;
    execvp(argv[0], argv); /* By the command's own PATH: it looks into environ. */
    return STEP_EXEC;
}

pid_t spawn(char **argv, char **envp, const char *cwd, const int fds[3], int tty, uint32_t uid, uint32_t gid,
            const char **step) {
    int report[2];
    *step = "";
    if (pipe2(report, O_CLOEXEC))
        return -errno;
    pid_t pid = fork();
    if (pid < 0) {
        int error = errno;
        close(report[0]);
        close(report[1]);
        return -error;
    }
    if (pid == 0) {
        /* The report's end must survive dup2 over 0, 1, 2. */
        int out = fcntl(report[1], F_DUPFD_CLOEXEC, 3);
        struct failure failure;
        failure.step = become(argv, envp, cwd, fds, tty, uid, gid);
        failure.error = errno;
        if (write(out, &failure, sizeof failure) < 0)
            _exit(126);
        _exit(127);
    }
    close(report[1]);
    struct failure failure;
    ssize_t got;
    do
        got = read(report[0], &failure, sizeof failure);
    while (got < 0 && errno == EINTR);
    close(report[0]);
    if (got != sizeof failure)
        return pid; /* The pipe closed with the exec. The child that failed is reaped like any other. */
    *step = STEPS[failure.step];
    return -failure.error;
}
