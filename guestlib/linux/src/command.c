/* command.c: the guest's own command: its output goes to the console, its status to the host. */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Cuts `size` bytes of strings that end with zeros apart; the last zero may lack. The caller frees the list alone. */
static char **cut(char *text, size_t size, size_t *count) {
    size_t most = 2;
    *count = 0;
    for (size_t i = 0; i < size; i++)
        most += !text[i];
    char **list = calloc(most, sizeof *list);
    for (size_t at = 0; list && at < size; at += strlen(text + at) + 1)
        list[(*count)++] = text + at;
    return list;
}

pid_t command_start(const char *folder) {
    char path[300], *text, *env = NULL;
    snprintf(path, sizeof path, "%s/command", folder);
    ssize_t size = read_whole(path, &text);
    if (size <= 0)
        return size == -ENOENT ? 0 : size < 0 ? (pid_t)size : -EINVAL;
    snprintf(path, sizeof path, "%s/env", folder);
    ssize_t env_size = read_whole(path, &env);
    size_t argc, envc = 0;
    char **argv = cut(text, (size_t)size, &argc), **given = cut(env, env_size > 0 ? (size_t)env_size : 0, &envc);
    char **envp = given ? environment(given, envc, 1) : NULL;
    pid_t pid = -ENOMEM;
    if (argv && argc && envp) {
        const char *step;
        int fds[3] = {open("/dev/null", O_RDONLY | O_CLOEXEC), STDOUT_FILENO, STDERR_FILENO};
        pid = spawn(argv, envp, "", fds, 0, 0, 0, &step);
        close(fds[0]);
        if (pid < 0)
            say("the command %s cannot be started: %s%s", argv[0], step, strerror(-pid));
    }
    free(envp);
    free(given);
    free(argv);
    free(env);
    free(text);
    return pid;
}
